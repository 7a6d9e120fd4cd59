"""Chat templates in the environment that transformers gives them.

Runs in a worker of `Sandbox`, as templates are programs of strangers: bounded there in time and
memory, and kept by jinja2's immutable sandbox from what is not theirs. Imports nothing else of the
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
