"""Tools that an answer may or must call: how its text is read, and how it is held to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hagane.generation import grammars
from hagane.generation.grammars import Grammar, Marker
from hagane.generation.parsers.base import Chain, Parser
from hagane.generation.parsers.tool_calls import registry
from hagane.generation.parsers.tool_calls.bare import BareCalls
from hagane.generation.parsers.tool_calls.hermes import JsonCalls
from hagane.generation.parsers.tool_calls.registry import ToolFormat
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tools:
    """`functions` are names and JSON schemas of arguments; with `required`, one must be called.

    `parallel` allows several calls in one answer. Where the model may call but need not, schemas
    that cannot be enforced are an error if they are `strict`, and are left out otherwise.
    """

    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    required: bool = False
    parallel: bool = True
    strict: bool = False


NO_TOOLS = Tools()


@dataclass(frozen=True)
class AnswerForm:
    """The form of one answer: how its text is read, and the grammar that it follows."""

    make_chain: Callable[[], Chain]
    grammar: Grammar | None


def shape_answer(
    template: str,
    prompt: str,
    tokenizer: Tokenizer,
    tools: Tools,
    grammar: Grammar | None,
    reasoning_budget: int | None = None,
) -> AnswerForm:
    """How a model with this `template` answers the rendered `prompt`.

    `grammar` is what the answer must look like where it calls no tool. Reasoning that the prompt
    has begun is closed after `reasoning_budget` tokens.
    Raises InvalidRequestError for invalid schemas, and where a model's calls cannot be
    distinguished from an answer that follows a grammar.
    """
    form = registry.tool_format(template)
    unheld = grammar is None and not tools.required
    if tools.required:
        grammar = _calls(form, tokenizer, tools)
    elif tools.functions and grammar is not None:
        if form is None or form.frame is None:
            raise InvalidRequestError(
                "With this model an answer can follow a grammar or call tools; set 'tool_choice' "
                "to 'none' or 'required'.",
                param=grammar.param,
            )
        grammar = grammars.one_of(grammar, _calls(form, tokenizer, tools))
    elif tools.functions:
        grammar = _calls_in_text(form, tokenizer, tools, template)
    closing = registry.open_reasoning(template, prompt)
    if closing is not None and reasoning_budget is not None:
        end = _marker(tokenizer, closing)
        if end.token is None:
            raise InvalidRequestError(
                "This model's reasoning does not end with a token of its own, so that it cannot be "
                "given a budget; leave it out.",
                param="thinking_token_budget",
            )
        free = grammars.any_text(_answer_markers(form, tokenizer), "thinking_token_budget")
        grammar = grammars.after_reasoning(grammar or free, end, reasoning_budget)
    elif grammar is not None and closing is not None:
        grammar = grammars.after_reasoning(grammar, _marker(tokenizer, closing))
    return AnswerForm(partial(_chain, template, prompt, form, tools, unheld), grammar)


def _chain(
    template: str, prompt: str, form: ToolFormat | None, tools: Tools, unheld: bool
) -> Chain:
    """The parsers of an answer; an `unheld` one may have calls whose markers were forgotten."""
    parsers: list[Parser] = []
    if (reasoning := registry.reasoning_parser(template, prompt)) is not None:
        parsers.append(reasoning)
    if tools.required and (form is None or form.frame is None):
        parsers.append(JsonCalls(0))
    elif form is not None and (tools.functions or form.name == "harmony"):
        # Harmony writes its reasoning and its answer in the same notation as calls.
        if form.frame is not None and tools.functions and unheld:
            parsers.append(BareCalls(tools.functions, form.frame))
        parsers.append(form.parser(tools.functions))
    return Chain(parsers)


def _calls(form: ToolFormat | None, tokenizer: Tokenizer, tools: Tools) -> Grammar:
    frame = None
    if form is not None and form.frame is not None:
        opening, closing = form.frame
        frame = _marker(tokenizer, opening), _marker(tokenizer, closing)
    return grammars.from_calls(tools.functions, "tools", frame=frame, several=tools.parallel)


def _calls_in_text(
    form: ToolFormat | None, tokenizer: Tokenizer, tools: Tools, template: str
) -> Grammar | None:
    """Free text in which calls follow their schemas; None where calls look like text."""
    if form is None or form.frame is None:
        return None
    opening, closing = (_marker(tokenizer, text) for text in form.frame)
    if opening.token is None or closing.token is None:
        return None
    thoughts = [
        marker
        for pair in registry.REASONING_MARKERS
        if pair[1] in template
        for marker in (_marker(tokenizer, text) for text in pair)
        if marker.token is not None
    ]
    return grammars.text_with_calls(
        tools.functions,
        "tools",
        frame=(opening, closing),
        between=thoughts,
        optional=not tools.strict,
    )


def _answer_markers(form: ToolFormat | None, tokenizer: Tokenizer) -> list[Marker]:
    """The markers of calls that are tokens of their own."""
    every = (_marker(tokenizer, text) for text in (form.frame if form and form.frame else ()))
    return [marker for marker in every if marker.token is not None]


def _marker(tokenizer: Tokenizer, text: str) -> Marker:
    return Marker(text, tokenizer.added_id(text))
