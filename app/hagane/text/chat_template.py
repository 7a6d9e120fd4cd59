"""Renders a conversation into the text a model was trained on.

Templates come with models, so they are programs of strangers: `template_program` runs them in a
worker process, where one that takes too long or too much memory costs its own request alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


# What one call may render, in messages or their equivalent in text: some tenths of a second.
_MOST_COST = 20_000
_CHARACTERS_A_MESSAGE = 2000


@dataclass(frozen=True)
class TemplateInput:
    """Messages to render, `turns` the indices of those that are to be found in the text."""

    messages: tuple[dict[str, Any], ...]
    turns: tuple[int, ...]
    extra: dict[str, Any]


@dataclass(frozen=True)
class TurnSpan:
    """Where a message lies: from `start` to `end` in the text through it, after `before` characters
    of the messages before it. `text` is that text where the whole one does not begin with it.
    """

    start: int
    before: int
    end: int
    text: str | None


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, the characters [start, end) of its `{% generation %}` blocks, and,
    where it has none, its turns.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    turns: tuple[TurnSpan, ...]


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
        variables = self._all_variables(extra)
        try:
            text, spans = self._sandbox.call(f"{_PROGRAM}:render", self.source, variables, messages)
        except SandboxError as error:
            raise _refusal(error) from None
        return _checked(text), [(start, end) for start, end in spans]

    def render_turns(
        self, conversations: Sequence[TemplateInput]
    ) -> list[Rendered | InvalidRequestError]:
        """All of `conversations`, or why the template refuses one; few calls for many of them."""
        pieces = [
            (index, piece)
            for index, conversation in enumerate(conversations)
            for piece in _pieces(conversation)
        ]
        found: list[Rendered | InvalidRequestError | None] = [None] * len(conversations)
        for group in _groups(pieces):
            answers = self._render_group([piece for _, piece in group])
            for (index, _), answer in zip(group, answers, strict=True):
                found[index] = _joined(found[index], answer)
        return [one for one in found if one is not None]

    def _render_group(self, group: list[TemplateInput]) -> list[Rendered | InvalidRequestError]:
        conversations = [(self._all_variables(one.extra), one.messages, one.turns) for one in group]
        try:
            answers = self._sandbox.call(f"{_PROGRAM}:render_turns", self.source, conversations)
        except SandboxError as error:
            if len(group) > 1:
                # One that takes too much costs itself alone.
                return [answer for one in group for answer in self._render_group([one])]
            return [_refusal(error)]
        return [_read(answer) for answer in answers]

    def _all_variables(self, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(self._reserved & extra.keys()):
            raise InvalidRequestError(
                f"'chat_template_kwargs' must not set '{taken[0]}', which the server gives to "
                "every chat template.",
                param="chat_template_kwargs",
            )
        return {**self._variables, **extra}


def _pieces(conversation: TemplateInput) -> Iterator[TemplateInput]:
    """The same with some of the turns each: every turn renders the conversation three times."""
    most = max(1, _MOST_COST // (3 * _cost(conversation)))
    turns = conversation.turns
    for first in range(0, max(len(turns), 1), most):
        yield TemplateInput(conversation.messages, turns[first : first + most], conversation.extra)


def _groups(
    pieces: list[tuple[int, TemplateInput]],
) -> Iterator[list[tuple[int, TemplateInput]]]:
    group: list[tuple[int, TemplateInput]] = []
    cost = 0
    for index, piece in pieces:
        more = _cost(piece) * (1 + 3 * len(piece.turns))
        if group and cost + more > _MOST_COST:
            yield group
            group, cost = [], 0
        group.append((index, piece))
        cost += more
    if group:
        yield group


def _cost(conversation: TemplateInput) -> int:
    """Of rendering it once, in messages."""
    characters = sum(len(str(message.get("content"))) for message in conversation.messages)
    return len(conversation.messages) + characters // _CHARACTERS_A_MESSAGE


def _read(answer: dict[str, Any]) -> Rendered | InvalidRequestError:
    if "error" in answer:
        return _refusal(answer["error"])
    turns = tuple(TurnSpan(*turn) for turn in answer["turns"])
    try:
        for text in (answer["text"], *(turn.text for turn in turns if turn.text is not None)):
            _checked(text)
    except InvalidRequestError as error:
        return error
    spans = tuple((start, end) for start, end in answer["spans"])
    return Rendered(answer["text"], spans, turns)


def _joined(
    first: Rendered | InvalidRequestError | None, second: Rendered | InvalidRequestError
) -> Rendered | InvalidRequestError:
    """A conversation's pieces as one; the first refusal stands for all."""
    if first is None:
        return second
    if isinstance(first, InvalidRequestError) or isinstance(second, InvalidRequestError):
        return first if isinstance(first, InvalidRequestError) else second
    return Rendered(first.text, first.spans, first.turns + second.turns)


def _refusal(reason: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"The model's chat template refuses these messages: {reason}", param="messages"
    )


def _checked(text: str) -> str:
    """Raises InvalidRequestError for text that cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "The model's chat template writes half of a surrogate pair, which is no character.",
            param="messages",
        ) from None
    return text


def _default(named: list[Any], path: Path) -> Any:
    """The template called default, of a list of named ones."""
    if not all(isinstance(entry, dict) for entry in named):
        raise ModelError(f"{path}: chat_template must be a text, or a list of named templates")
    for entry in named:
        if entry.get("name") == "default":
            return entry.get("template")
    return None
