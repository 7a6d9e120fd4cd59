"""Renders a conversation into the text a model was trained on.

Templates come with models, so they are foreign code: they run in jinja2's immutable sandbox.
"""

from __future__ import annotations

import json
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hagane.system.errors import InvalidRequestError, ModelError
from hagane.text.tokenizer import Tokenizer


class ChatTemplate:
    """One model's template, with the special tokens it may mention."""

    def __init__(self, source: str, variables: dict[str, str], origin: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._variables = variables
        # Drawn afresh for every template: no message can hold them.
        self._marks = f"\ufdd0{secrets.token_hex(8)}(", f"\ufdd0{secrets.token_hex(8)})"
        environment.hagane_marks = self._marks  # type: ignore[attr-defined]
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"{origin}: the chat template is malformed: {error}") from None

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """From chat_template.jinja, else tokenizer_config.json; None where there is neither."""
        path = directory / "chat_template.jinja"
        if path.is_file():
            source: Any = path.read_text(encoding="utf-8")
        else:
            path = directory / "tokenizer_config.json"
            source = tokenizer.config.get("chat_template")
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise ModelError(f"{path}: chat_template must be a string")
        variables = {}
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = tokenizer.config.get(key)
            variables[key] = (value.get("content") if isinstance(value, dict) else value) or ""
        return cls(source, variables, str(path))

    def render(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The conversation as text. Raises InvalidRequestError when the template refuses it."""
        extra["add_generation_prompt"] = add_generation_prompt
        return self.render_spans(messages, **extra)[0]

    def render_spans(
        self, messages: list[dict[str, Any]], **extra: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the characters [start, end) in `{% generation %}` blocks.

        Raises InvalidRequestError when the template refuses it.
        """
        try:
            marked = self._template.render(messages=messages, **self._variables, **extra)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None
        start, end = self._marks
        text, *rest = marked.split(start)
        spans = []
        for piece in rest:
            said, _, after = piece.partition(end)
            spans.append((len(text), len(text) + len(said)))
            text += said + after
        return text, spans


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the assistant says, for training."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # Statements among statements, not a macro: what the block sets stays set after it.
        before, after = (
            nodes.Output([nodes.TemplateData(mark)], lineno=line)
            for mark in self.environment.hagane_marks  # type: ignore[attr-defined]
        )
        return [before, *body, after]


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
