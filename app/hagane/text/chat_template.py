"""Renders a conversation into the text a model was trained on.

Templates come with models, so they are programs of strangers: `template_program` runs them in a
worker process, where one that takes too long or too much memory costs its own request alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hagane.system.errors import InvalidRequestError, ModelError
from hagane.system.files import read_text
from hagane.system.sandbox import Sandbox, SandboxError, shared_sandbox
from hagane.text.tokenizer import Tokenizer

_PROGRAM = "hagane.text.template_program"
# The largest in use have 30 kB.
_LARGEST = 1 << 20
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """One model's template, with the special tokens it may mention. Thread safe; calls block.

    Raises ModelError if the template is malformed or takes too much to compile.
    """

    def __init__(
        self,
        source: str,
        variables: dict[str, str],
        origin: str,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.source = source
        self._sandbox = sandbox or shared_sandbox()
        self._variables = variables
        try:
            own = self._sandbox.call(f"{_PROGRAM}:check", source)
        except SandboxError as error:
            raise ModelError(f"{origin}: the chat template is malformed: {error}") from None
        self._reserved = frozenset(("messages", "self", *_SPECIAL_TOKENS, *variables, *own))

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """From chat_template.jinja, else tokenizer_config.json; None where there is neither.

        Raises ModelError naming the file at fault.
        """
        path = directory / "chat_template.jinja"
        if path.is_file():
            source: Any = read_text(path, _LARGEST)
        else:
            path = directory / "tokenizer_config.json"
            source = tokenizer.config.get("chat_template")
        if isinstance(source, list):
            source = _default(source, path)
        if source is None:
            return None
        if not isinstance(source, str):
            raise ModelError(f"{path}: chat_template must be a text")
        if len(source) > _LARGEST:
            raise ModelError(f"{path}: chat_template is longer than {_LARGEST} characters")
        variables = {key: tokenizer.special_text(key) or "" for key in _SPECIAL_TOKENS}
        return cls(source, variables, str(path))

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The conversation as text. Raises InvalidRequestError when the template refuses it."""
        extra["add_generation_prompt"] = add_generation_prompt
        return self.render_spans(messages, **extra)[0]

    def render_spans(
        self, messages: list[dict[str, Any]], /, **extra: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the characters [start, end) in `{% generation %}` blocks.

        Raises InvalidRequestError when the template refuses it, fails or takes too long, or when
        `extra` has a name that is the template's own.
        """
        if taken := sorted(self._reserved & extra.keys()):
            raise InvalidRequestError(
                f"'chat_template_kwargs' must not set '{taken[0]}', which the server gives to "
                "every chat template.",
                param="chat_template_kwargs",
            )
        variables = {**self._variables, **extra}
        try:
            text, spans = self._sandbox.call(f"{_PROGRAM}:render", self.source, variables, messages)
        except SandboxError as error:
            raise InvalidRequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                "The model's chat template writes half of a surrogate pair, which is no character.",
                param="messages",
            ) from None
        return text, [(start, end) for start, end in spans]


def _default(named: list[Any], path: Path) -> Any:
    """The template called default, of a list of named ones."""
    if not all(isinstance(entry, dict) for entry in named):
        raise ModelError(f"{path}: chat_template must be a text, or a list of named templates")
    for entry in named:
        if entry.get("name") == "default":
            return entry.get("template")
    return None
