"""The context of a response: earlier responses, a conversation, items that are referred to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from hagane.api.answering import effort_variables
from hagane.api.openai.response_items import parse_items, read_turns
from hagane.api.openai.response_schemas import (
    Item,
    ItemReference,
    MessageItem,
    ResponseBody,
    ResponseInput,
)
from hagane.api.serving import ResolvedModel
from hagane.api.tools import allowed, shown
from hagane.generation.conversation import Conversation, Turn
from hagane.pool.messages import SamplingParams
from hagane.store.responses import Responses
from hagane.system.errors import InvalidRequestError, NotFoundError


@dataclass(frozen=True)
class GivenInput:
    """The whole conversation, and the items of it that are new."""

    conversation: Conversation
    new: list[Item]


def read_input(responses: Responses, owner: str, body: ResponseInput) -> GivenInput:
    """The items that a body contains and refers to; reads the store.

    Raises InvalidRequestError naming the field, also for a response that is not stored here.
    """
    if body.previous_response_id is not None and body.conversation is not None:
        raise InvalidRequestError(
            "Give 'previous_response_id' or 'conversation', not both.", param="conversation"
        )
    new = _items(responses, owner, body)
    items = [*_earlier(responses, owner, body), *new]
    if not items:
        raise InvalidRequestError("'input' is empty; send a text or items.", param="input")
    system = [] if body.instructions is None else [Turn("system", body.instructions)]
    turns = (*system, *read_turns(items))
    tools = shown(allowed(body.choice, body.tools or ()))
    return GivenInput(Conversation(turns, tools, True, _template_variables(body)), new)


def _items(responses: Responses, owner: str, body: ResponseInput) -> list[Item]:
    if isinstance(body.input, str):
        return [MessageItem(role="user", content=body.input)] if body.input else []
    items: list[Item] = []
    for place, item in enumerate(body.input):
        if isinstance(item, ItemReference):
            try:
                items += parse_items([responses.item(item.id, owner)])
            except NotFoundError as error:
                raise InvalidRequestError(
                    f"{error} Send the item itself.", param=f"input[{place}].id"
                ) from None
        else:
            items.append(item)
    return items


def _earlier(responses: Responses, owner: str, body: ResponseInput) -> list[Item]:
    """The items before those of the body."""
    try:
        if body.previous_response_id is not None:
            return parse_items(responses.context(body.previous_response_id, owner))
        if body.conversation_id is not None:
            return parse_items(responses.conversation_context(body.conversation_id, owner))
    except NotFoundError as error:
        previous = body.previous_response_id is not None
        raise NotFoundError(
            str(error),
            param="previous_response_id" if previous else "conversation",
            code="previous_response_not_found" if previous else "conversation_not_found",
        ) from None
    return []


def _template_variables(body: ResponseInput) -> tuple[tuple[str, Any], ...]:
    effort = body.reasoning.effort if body.reasoning else None
    return tuple((effort_variables(effort) | (body.chat_template_kwargs or {})).items())


def show_head(
    body: ResponseBody, response_id: str, resolved: ResolvedModel, sampling: SamplingParams
) -> dict[str, Any]:
    """The fields of a response that are known before its first token."""
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    reasoning = body.reasoning
    conversation = body.conversation_id
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": body.background,
        "completed_at": None,
        "conversation": None if conversation is None else {"id": conversation},
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": resolved.ref.id,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": _show_choice(body),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _show_choice(body: ResponseBody) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return choice.model_dump()
