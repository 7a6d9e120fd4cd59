"""The bodies of /v1/responses and /v1/conversations, and the items that both hold.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hagane.api.chat_messages import refuse_media
from hagane.api.decoding import DecodingBody
from hagane.api.fields import Body, Count, Flag, Metadata, ModelName, either
from hagane.api.structured import JsonSchema
from hagane.api.tools import MOST_TOOLS, Function, FunctionName, ToolSelection, require_different
from hagane.generation import grammars
from hagane.generation.grammars import Grammar

# Kinds of items; all others are of tools that OpenAI runs itself.
_ITEMS = {
    "message": "MessageItem",
    "function_call": "FunctionCallItem",
    "function_call_output": "FunctionOutputItem",
    "reasoning": "ReasoningItem",
    "item_reference": "ItemReference",
}
ItemId = Annotated[str, Field(max_length=256)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ItemPart(Body):
    """A part of a message, or of a function's output: text alone."""

    type: Literal["input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def read_refusals(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") == "refusal":
            return {"type": "refusal", "text": value.get("refusal")}
        refuse_media(value)
        return value


Parts = Annotated[list[ItemPart], Field(fail_fast=True)]
ItemContent = Annotated[
    Annotated[str, Tag("str")] | Annotated[Parts, Tag("list")], either("str", "list")
]


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: ItemContent
    id: ItemId | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(Body):
    type: Literal["function_call"]
    call_id: ItemId
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str
    id: ItemId | None = None
    status: ItemStatus | None = None
    namespace: None = None
    caller: None = None


class FunctionOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: ItemId
    output: ItemContent
    id: ItemId | None = None
    status: ItemStatus | None = None
    name: str | None = None


class ReasoningItem(Body):
    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: Parts | None = None
    content: Parts | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


class ItemReference(Body):
    """An item that this server has stored."""

    type: Literal["item_reference"]
    id: ItemId


def name_other_kinds(value: Any) -> Any:
    """Raises PydanticCustomError for an item of a kind that this server has not."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _ITEMS:
        raise PydanticCustomError(
            "unsupported_content",
            "items of type '{kind}' are not supported by this server; use {known}",
            {"kind": kind[:64], "known": ", ".join(_ITEMS)},
        )
    return value


def _item_tag(value: Any) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else None
    return _ITEMS.get(kind) if isinstance(kind, str) else type(value).__name__


Item = Annotated[
    Annotated[MessageItem, Tag("MessageItem")]
    | Annotated[FunctionCallItem, Tag("FunctionCallItem")]
    | Annotated[FunctionOutputItem, Tag("FunctionOutputItem")]
    | Annotated[ReasoningItem, Tag("ReasoningItem")]
    | Annotated[ItemReference, Tag("ItemReference")],
    Discriminator(
        _item_tag,
        custom_error_type="invalid_type",
        custom_error_message="Input should be an item: an object with a 'type'",
    ),
    BeforeValidator(name_other_kinds),
]
Items = Annotated[list[Item], Field(fail_fast=True)]


class ResponseTool(Function):
    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def name_other_kinds(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise PydanticCustomError(
                "unsupported_content",
                "tools of type '{kind}' are not supported by this server; use 'function'",
                {"kind": kind[:64]},
            )
        return value


class ResponseFunctionChoice(Body):
    type: Literal["function"]
    name: FunctionName


class ResponseAllowedChoice(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseFunctionChoice], Field(min_length=1, max_length=MOST_TOOLS)]


def _choice_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None:
        return "str"
    return "allowed" if kind == "allowed_tools" else "dict"


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("str")]
    | Annotated[ResponseFunctionChoice, Tag("dict")]
    | Annotated[ResponseAllowedChoice, Tag("allowed")],
    Discriminator(_choice_kind),
]


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(max_length=64)] | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    json_schema: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: Flag | None = None

    @model_validator(mode="after")
    def need_a_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type 'json_schema' needs the field 'schema'")
        return self


class TextConfig(Body):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    # An extension.
    token_budget: Annotated[Count, Field(ge=0)] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: Flag = False


class ConversationRef(Body):
    id: ItemId


class ResponseInput(Body):
    """The fields that make the prompt: also the body of the token count."""

    input: Annotated[
        Annotated[str, Tag("str")] | Annotated[Items, Tag("list")], either("str", "list")
    ] = ""
    instructions: str | None = None
    previous_response_id: ItemId | None = None
    conversation: (
        Annotated[
            Annotated[ItemId, Tag("str")] | Annotated[ConversationRef, Tag("dict")],
            Discriminator(lambda value: "str" if isinstance(value, str) else "dict"),
        ]
        | None
    ) = None
    tools: Annotated[list[ResponseTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None

    @field_validator("tools")
    @classmethod
    def need_different_names(cls, value: list[ResponseTool] | None) -> list[ResponseTool] | None:
        require_different(value or ())
        return value

    @property
    def choice(self) -> ToolSelection:
        """`tool_choice` in the words that all dialects share."""
        choice = self.tool_choice
        if isinstance(choice, ResponseFunctionChoice):
            return ToolSelection("required", (choice.name,), one=True)
        if isinstance(choice, ResponseAllowedChoice):
            return ToolSelection(choice.mode, tuple(tool.name for tool in choice.tools))
        return ToolSelection(choice or "auto")

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that the response belongs to, if it does to one."""
        given = self.conversation
        return given.id if isinstance(given, ConversationRef) else given

    @property
    def has_grammar(self) -> bool:
        """Whether a grammar is to be compiled for this body."""
        form = self.text.format if self.text else None
        return bool(self.tools or (form and form.type != "text"))

    def wanted_grammar(self) -> Grammar | None:
        """The grammar of the answer. Raises InvalidRequestError."""
        form = self.text.format if self.text else None
        if form is None or form.type == "text":
            return None
        if form.json_schema is None:
            return grammars.any_json_object("text.format")
        return grammars.from_json_schema(form.json_schema, "text.format.schema")


class ResponseBody(ResponseInput, DecodingBody):
    """POST /v1/responses."""

    max_output_tokens: Annotated[Count, Field(ge=1)] | None = None
    top_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    background: Flag = False
    store: Flag = True
    metadata: Metadata | None = None
    stream_options: ResponseStreamOptions | None = None
    # It bounds calls of built-in tools, of which this server has none.
    max_tool_calls: Annotated[Count, Field(ge=1)] | None = None
    # Of OpenAI's contract, and not implemented: null alone is accepted.
    prompt: None = None

    @property
    def logprobs(self) -> int | None:
        """How many alternatives are reported for each token of the answer; None is no report."""
        asked = "message.output_text.logprobs" in (self.include or ())
        return (self.top_logprobs or 0) if asked else None


class InputTokensBody(ResponseInput):
    """POST /v1/responses/input_tokens."""

    model: ModelName | None = None


class ConversationBody(Body):
    """POST /v1/conversations."""

    items: Annotated[Items, Field(max_length=1000)] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Body):
    """POST /v1/conversations/{conversation_id}."""

    metadata: Metadata


class ItemsBody(Body):
    """POST /v1/conversations/{conversation_id}/items."""

    items: Annotated[Items, Field(min_length=1, max_length=1000)]
