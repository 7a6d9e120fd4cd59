"""Chat templates in the environment that transformers gives them.

Runs in a worker of `Sandbox`, as templates are programs of strangers: bounded there in time and
memory, and kept by jinja2's immutable sandbox from everything else. Imports nothing else of the
package, so that a worker starts quickly.
"""

from __future__ import annotations

import json
import secrets
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


def check(source: str) -> list[str]:
    """The names that the environment gives to a template, which must not be redefined.

    Raises ValueError if it cannot be compiled.
    """
    return sorted(_compiled(source)[0].environment.globals)


def render(
    source: str, variables: dict[str, Any], messages: list[dict[str, Any]]
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the characters [start, end) in `{% generation %}` blocks.

    Raises ValueError with the template's own words, or with what it ran into.
    """
    template, (start, end) = _compiled(source)
    try:
        marked = template.render({**variables, "messages": messages})
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(_words(error)) from None
    text, *rest = marked.split(start)
    spans = []
    for piece in rest:
        spoken, _, after = piece.partition(end)
        spans.append((len(text), len(text) + len(spoken)))
        text += spoken + after
    return text, spans


def render_turns(
    source: str, conversations: list[tuple[dict[str, Any], list[dict[str, Any]], list[int]]]
) -> list[dict[str, Any]]:
    """Conversations as variables, messages and the indices of turns; for each of them:

    `text` and `spans` as `render` gives them, and `turns`, empty where there are spans; or `error`,
    the template's own words. A turn is the offset where it begins to differ from its generation
    prompt, the lengths of the conversation before and through it, and the conversation through it
    where the whole one does not begin with that, else None.
    """
    rendered = []
    for variables, messages, turns in conversations:
        try:
            rendered.append(_turns(source, variables, messages, turns))
        except ValueError as error:
            rendered.append({"error": str(error)})
    return rendered


def _turns(
    source: str, variables: dict[str, Any], messages: list[dict[str, Any]], turns: list[int]
) -> dict[str, Any]:
    def text_of(count: int, prompt: bool = False) -> str:
        return render(source, {**variables, "add_generation_prompt": prompt}, messages[:count])[0]

    whole, spans = render(source, {**variables, "add_generation_prompt": False}, messages)
    found = []
    for index in [] if spans else turns:
        text = whole if index + 1 == len(messages) else text_of(index + 1)
        # Some generation prompts have more than the template repeats, such as an opening <think>.
        start = _agreeing(text_of(index, prompt=True), text)
        other = None if whole.startswith(text) else text
        found.append((start, len(text_of(index)), len(text), other))
    return {"text": whole, "spans": spans, "turns": found}


def _agreeing(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[jinja2.Template, tuple[str, str]]:
    # Random for every template: no message can hold them.
    marks = f"\ufdd0{secrets.token_hex(8)}(", f"\ufdd0{secrets.token_hex(8)})"
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, _GenerationBlock],
        optimized=False,
    )
    environment.extend(generation_marks=marks)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source), marks
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(_words(error)) from None


class _CodeGenerator(CodeGenerator):
    """Leaves constant expressions to be computed where the template reaches them, if ever."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData | nodes.Const):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator


def _words(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}"


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # Statements among statements, not a macro: what the block sets stays set after it.
        before, after = (
            nodes.Output([nodes.TemplateData(mark)], lineno=line)
            for mark in self.environment.generation_marks  # type: ignore[attr-defined]
        )
        return [before, *body, after]


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
