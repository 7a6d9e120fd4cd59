"""OpenAI's messages, as clients write them and as they send answers back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from hagane.api.fields import Body, Count, either

_MEDIA = {
    "image_url": "images", "input_image": "images", "image": "images", "input_audio": "audio",
    "audio_url": "audio", "video_url": "video", "video": "video", "file": "files",
    "input_file": "files",
}  # fmt: skip


def refuse_media(value: Any) -> None:
    """Raises PydanticCustomError for a part of a message that is no text."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise PydanticCustomError(
            "unsupported_content",
            "a part of type '{kind}': {media} are not supported by this server; send text",
            {"kind": kind, "media": _MEDIA[kind]},
        )


class TextPart(Body):
    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def name_what_is_no_text(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "refusal":
            return {"type": "text", "text": value.get("refusal")}
        refuse_media(value)
        return value


class FunctionCall(Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class ToolCallPart(Body):
    """A call that an assistant's message of the conversation holds."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Count | None = None


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("list")],
    either("str", "list"),
]


class Message(Body):
    """One turn. An answer that OpenAI's clients send back is accepted unchanged."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None
    function_call: FunctionCall | None = None
    tool_calls: list[ToolCallPart] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    cache_control: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def allow_answers_without_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("role") == "assistant" and value.get("content") is None:
            return {**value, "content": value.get("refusal") or ""}
        return value

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)
