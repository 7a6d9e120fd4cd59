"""Items of the Responses dialect: as turns of a conversation, and as the API shows them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import msgspec
from pydantic import TypeAdapter

from hagane.api.openai.response_schemas import (
    FunctionCallItem,
    FunctionOutputItem,
    Item,
    ItemPart,
    ItemReference,
    MessageItem,
    ReasoningItem,
)
from hagane.generation.conversation import Role, ToolCall, Turn

_ADAPTER: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def new_id(kind: str) -> str:
    """An id for an item of `kind`, or for a "resp" or "conv"."""
    return f"{_PREFIXES.get(kind, kind)}_{uuid.uuid4().hex}"


def parse_items(stored: Iterable[str]) -> list[Item]:
    """Items from the JSON that the store keeps."""
    return _ADAPTER.validate_python([msgspec.json.decode(each) for each in stored])


def read_turns(items: Iterable[Item]) -> tuple[Turn, ...]:
    """Items as turns. An answer's reasoning, text and calls are one turn of the assistant's."""
    turns: list[Turn] = []
    for item in items:
        if isinstance(item, ItemReference):
            continue
        last = turns[-1] if turns else None
        if isinstance(item, FunctionOutputItem):
            turns.append(Turn("tool", _text(item.output), item.name, call_id=item.call_id))
        elif isinstance(item, MessageItem) and item.role != "assistant":
            role: Role = "user" if item.role == "user" else "system"
            turns.append(Turn(role, _text(item.content)))
        elif last is not None and last.role == "assistant" and _continues(last, item):
            turns[-1] = _extended(last, item)
        else:
            turns.append(_extended(Turn("assistant", ""), item))
    return tuple(turns)


def _continues(turn: Turn, item: Item) -> bool:
    """Whether `item` belongs to the answer that `turn` holds so far."""
    if isinstance(item, ReasoningItem):
        return False
    return isinstance(item, FunctionCallItem) or not (turn.text or turn.calls)


def _extended(turn: Turn, item: Item) -> Turn:
    text, reasoning, calls = turn.text, turn.reasoning, turn.calls
    if isinstance(item, MessageItem):
        text += _text(item.content)
    elif isinstance(item, ReasoningItem):
        reasoning = _text(item.content or item.summary or [])
    elif isinstance(item, FunctionCallItem):
        calls = (*calls, ToolCall(item.call_id, item.name, item.arguments))
    return Turn("assistant", text, reasoning=reasoning, calls=calls)


def _text(content: str | list[ItemPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def show_item(item: Item) -> dict[str, Any]:
    """An item of the input as the API shows it, with an id."""
    shown: dict[str, Any] = {"id": item.id or new_id(item.type), "type": item.type}
    if isinstance(item, MessageItem):
        kind = "output_text" if item.role == "assistant" else "input_text"
        content = _show_parts(item.content, kind)
        shown |= {"role": item.role, "status": item.status or "completed", "content": content}
    elif isinstance(item, FunctionCallItem):
        call = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        shown |= {**call, "status": item.status or "completed"}
    elif isinstance(item, FunctionOutputItem):
        output = item.output
        if not isinstance(output, str):
            output = _show_parts(output, "input_text")
        shown |= {"call_id": item.call_id, "output": output, "status": item.status or "completed"}
    elif isinstance(item, ReasoningItem):
        shown["summary"] = _show_parts(item.summary or [], "summary_text")
        if item.content is not None:
            shown["content"] = _show_parts(item.content, "reasoning_text")
    return shown


def _show_parts(content: str | list[ItemPart], kind: str) -> Any:
    if isinstance(content, str):
        return [_show_part(kind, content)]
    return [_show_part(part.type if part.type != "text" else kind, part.text) for part in content]


def _show_part(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": kind, "text": text} | ({"annotations": []} if kind == "output_text" else {})
