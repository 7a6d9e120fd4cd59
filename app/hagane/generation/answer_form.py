"""Tools that an answer may or must call: how its text is read, and how it is held to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from hagane.generation import grammars
from hagane.generation.call_grammars import CallGrammars
from hagane.generation.grammars import Grammar, Marker
from hagane.generation.harmony_grammars import harmony_grammar
from hagane.generation.parsers.base import Chain, Parser
from hagane.generation.parsers.tool_calls import registry
from hagane.generation.parsers.tool_calls.bare import BareCalls
from hagane.generation.parsers.tool_calls.hermes import JSON_LIST, JsonCalls
from hagane.generation.parsers.tool_calls.registry import ToolFormat
from hagane.generation.tools import Tools
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer


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
    tool_format: str | None = None,
) -> AnswerForm:
    """How a model with this `template` answers the rendered `prompt`.

    `grammar` is what the answer must look like where it calls no tool. Reasoning is closed after
    `reasoning_budget` tokens. Calls are written in the `tool_format` of that name, or in the one
    that the template shows.
    Raises InvalidRequestError for invalid schemas, and where a model's calls cannot be
    distinguished from an answer that follows a grammar.
    """
    form = registry.tool_format(template, tool_format)
    return _Shaping(template, prompt, tokenizer, tools, form).shape(grammar, reasoning_budget)


@dataclass(frozen=True)
class _Shaping:
    """What is known of one answer; `form` is the notation of the model's calls."""

    template: str
    prompt: str
    tokenizer: Tokenizer
    tools: Tools
    form: ToolFormat | None

    def shape(self, grammar: Grammar | None, budget: int | None) -> AnswerForm:
        """As `shape_answer`."""
        tools, form = self.tools, self.form
        wanted = tools.functions or grammar is not None or budget is not None
        if form is not None and form.name == "harmony" and wanted:
            held = harmony_grammar(tools, grammar, self._marker, budget)
            if held is not None:
                return AnswerForm(partial(Chain, (form.parser(tools.functions),)), held)
        unheld = grammar is None and not tools.required
        if tools.functions:
            grammar = self._with_calls(grammar)
        begun = registry.open_reasoning(self.template, self.prompt) is not None
        if begun or budget is not None or not unheld:
            grammar = self._after_reasoning(grammar, budget)
        return AnswerForm(partial(self._chain, unheld), grammar)

    def _with_calls(self, grammar: Grammar | None) -> Grammar | None:
        """The grammar of an answer that may or must call, or may follow `grammar` instead."""
        tools, form, calls = self.tools, self.form, None
        if form is not None and form.notation is not None:
            calls = CallGrammars(form.notation(self.template), self._marker, "tools")
        if tools.required:
            calls = calls or CallGrammars(JSON_LIST, self._marker, "tools")
            return calls.required(tools.functions, several=tools.parallel)
        if grammar is None:
            if form is None or calls is None:
                return None
            return calls.in_text(
                tools.functions,
                between=self._tokens_of(
                    marker
                    for pair in registry.REASONING_MARKERS
                    if pair[1] in self.template
                    for marker in pair
                ),
                bare=form.frame is not None,
                optional=not tools.strict,
            )
        if calls is None or calls.looks_like_text:
            raise InvalidRequestError(
                "With this model an answer can follow a grammar or call tools; set 'tool_choice' "
                "to 'none' or 'required'.",
                param=grammar.param,
            )
        called = calls.required(tools.functions, several=tools.parallel)
        return grammars.one_of(grammar, called)

    def _after_reasoning(self, grammar: Grammar | None, budget: int | None) -> Grammar | None:
        """`grammar` after the reasoning that the prompt has begun, or that the model may begin."""
        closing, opening = registry.open_reasoning(self.template, self.prompt), None
        if closing is None:
            markers = registry.own_reasoning(self.template, self.prompt)
            if markers is None or (opening := self._marker(markers[0])).token is None:
                return grammar
            closing = markers[1]
        end = self._marker(closing)
        if budget is None:
            if grammar is None:
                return None
            return grammars.after_reasoning(grammar, end, opening=opening)
        if end.token is None:
            raise InvalidRequestError(
                "This model's reasoning does not end with a token of its own, so that it cannot "
                "be given a budget; leave it out.",
                param="thinking_token_budget",
            )
        markers_of_calls = self.form.parser({}).markers if self.form else ()
        free = grammars.any_text(self._tokens_of(markers_of_calls), "thinking_token_budget")
        return grammars.after_reasoning(grammar or free, end, budget, opening=opening)

    def _chain(self, unheld: bool) -> Chain:
        """The parsers of the answer; an `unheld` one may have calls without markers."""
        tools, form = self.tools, self.form
        parsers: list[Parser] = []
        if (reasoning := registry.reasoning_parser(self.template, self.prompt)) is not None:
            parsers.append(reasoning)
        if tools.required and (form is None or form.notation is None):
            parsers.append(JsonCalls(0))
        elif form is not None and (tools.functions or form.name == "harmony"):
            # Harmony writes its reasoning and its answer in the same notation as calls.
            if form.frame is not None and tools.functions and unheld:
                parsers.append(BareCalls(tools.functions, form.frame))
            parsers.append(form.parser(tools.functions))
        return Chain(parsers)

    def _tokens_of(self, texts: Iterable[str]) -> list[Marker]:
        """Those of some markers that are tokens of the model."""
        return [marker for marker in map(self._marker, texts) if marker.token is not None]

    def _marker(self, text: str) -> Marker:
        return Marker(text, self.tokenizer.added_id(text))
