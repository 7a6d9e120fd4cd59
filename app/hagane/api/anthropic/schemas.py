"""The bodies of /v1/messages.

https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hagane.api.fields import Body, Count, Flag, Hint, ModelName, Number, either
from hagane.api.structured import JsonSchema
from hagane.api.tools import MOST_TOOLS, Function, FunctionName, ToolSelection, require_different
from hagane.generation import grammars
from hagane.generation.grammars import Grammar

_MEDIA = {"image": "images", "document": "documents", "search_result": "search results"}
_BLOCKS = {
    "text": "TextBlock",
    "tool_use": "ToolUseBlock",
    "tool_result": "ToolResultBlock",
    "thinking": "ThinkingBlock",
    "redacted_thinking": "RedactedThinkingBlock",
}
CacheControl = dict[str, Any]
BlockId = Annotated[str, Field(max_length=256)]


class TextBlock(Body):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: BlockId
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None


def name_other_blocks(value: Any) -> Any:
    """Raises PydanticCustomError for a block of a kind that this server has not."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind in _BLOCKS:
        return value
    raise PydanticCustomError(
        "unsupported_content",
        "a block of type '{kind}': {what} are not supported by this server; send text",
        {"kind": kind[:64], "what": _MEDIA.get(kind, "such blocks")},
    )


TextBlocks = Annotated[
    list[Annotated[TextBlock, BeforeValidator(name_other_blocks)]], Field(fail_fast=True)
]
Text = Annotated[
    Annotated[str, Tag("str")] | Annotated[TextBlocks, Tag("list")], either("str", "list")
]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: BlockId
    content: Text = ""
    is_error: Flag = False
    cache_control: CacheControl | None = None


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Body):
    type: Literal["redacted_thinking"]
    data: str


def _block_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return _BLOCKS.get(kind) if isinstance(kind, str) else type(value).__name__


Block = Annotated[
    Annotated[TextBlock, Tag("TextBlock")]
    | Annotated[ToolUseBlock, Tag("ToolUseBlock")]
    | Annotated[ToolResultBlock, Tag("ToolResultBlock")]
    | Annotated[ThinkingBlock, Tag("ThinkingBlock")]
    | Annotated[RedactedThinkingBlock, Tag("RedactedThinkingBlock")],
    Discriminator(
        _block_tag,
        custom_error_type="invalid_type",
        custom_error_message="Input should be a content block: an object with a 'type'",
    ),
    BeforeValidator(name_other_blocks),
]
Blocks = Annotated[list[Block], Field(fail_fast=True)]


class AnthropicMessage(Body):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("str")] | Annotated[Blocks, Tag("list")], either("str", "list")
    ]


class AnthropicTool(Body):
    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: CacheControl | None = None
    strict: Flag | None = None
    eager_input_streaming: Flag | None = None

    @model_validator(mode="before")
    @classmethod
    def name_other_kinds(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "custom":
            raise PydanticCustomError(
                "unsupported_content",
                "tools of type '{kind}' are not supported by this server; use 'custom'",
                {"kind": kind[:64]},
            )
        return value

    def as_function(self) -> Function:
        """The same tool in the words that all dialects share."""
        return Function(
            name=self.name,
            description=self.description,
            parameters=self.input_schema,
            strict=self.strict,
        )


class AnthropicChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: Flag = False

    @model_validator(mode="after")
    def need_a_name(self) -> AnthropicChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("type 'tool' needs a 'name', and no other type takes one")
        return self


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Count, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    json_schema: Annotated[JsonSchema, Field(alias="schema")]


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessageMetadata(Body):
    user_id: Hint | None = None


class MessagesInput(Body):
    """The fields that make the prompt: the body of /v1/messages/count_tokens."""

    model: ModelName
    messages: Annotated[list[AnthropicMessage], Field(min_length=1), Field(fail_fast=True)]
    system: Text | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = (
        None
    )
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    # A hint: what prompts have in common is cached anyway.
    cache_control: CacheControl | None = None

    @field_validator("tools")
    @classmethod
    def need_different_names(cls, value: list[AnthropicTool] | None) -> list[AnthropicTool] | None:
        require_different([tool.as_function() for tool in value or ()])
        return value

    @property
    def functions(self) -> list[Function]:
        """The tools in the words that all dialects share."""
        return [tool.as_function() for tool in self.tools or ()]

    @property
    def choice(self) -> ToolSelection:
        """`tool_choice` in the words that all dialects share."""
        choice = self.tool_choice
        if choice is None or choice.type == "auto":
            return ToolSelection()
        if choice.type == "tool":
            return ToolSelection(
                "required", (choice.name or "",), one=choice.disable_parallel_tool_use
            )
        return ToolSelection("none" if choice.type == "none" else "required")

    @property
    def parallel(self) -> bool:
        """Whether one answer may call several tools."""
        return self.tool_choice is None or not self.tool_choice.disable_parallel_tool_use

    @property
    def has_grammar(self) -> bool:
        """Whether a grammar is to be compiled for this body."""
        form = self.output_config.format if self.output_config else None
        return bool(self.tools or form)

    def wanted_grammar(self) -> Grammar | None:
        """The grammar of the answer. Raises InvalidRequestError."""
        form = self.output_config.format if self.output_config else None
        if form is None:
            return None
        return grammars.from_json_schema(form.json_schema, "output_config.format.schema")


class MessagesBody(MessagesInput):
    """POST /v1/messages."""

    max_tokens: Annotated[Count, Field(ge=1)]
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1000)]],
            Field(max_length=16, fail_fast=True),
        ]
        | None
    ) = None
    stream: Flag = False
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Count, Field(ge=-1)] | None = None
    # Extensions.
    seed: Annotated[Count, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    priority: Annotated[Count, Field(ge=-1000, le=1000)] = 0
    timeout: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    # Hints that change no answer.
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
