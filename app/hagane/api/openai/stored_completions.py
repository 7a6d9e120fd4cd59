"""/v1/chat/completions: the answers that were stored. A key sees its own, the admin key all."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Metadata
from hagane.api.serving import get_serving
from hagane.store.answers.answers import Answers
from hagane.store.answers.completions import CompletionFilter, StoredCompletion
from hagane.store.paging import Page, Paging
from hagane.system.errors import InvalidRequestError

router = guarded_router()

_COMPLETIONS = "/v1/chat/completions"
_COMPLETION = _COMPLETIONS + "/{completion_id}"
_METADATA = re.compile(r"metadata\[(.+)\]")
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
# Fields of the request that OpenAI shows with the answer.
_SHOWN = (
    "frequency_penalty", "presence_penalty", "response_format", "seed", "service_tier",
    "temperature", "tool_choice", "tools", "top_p",
)  # fmt: skip


class UpdateBody(Body):
    """POST /v1/chat/completions/{completion_id}: new metadata in place of the old."""

    metadata: Metadata


async def written_answers(request: Request) -> Answers:
    """Dependency of the routes that read answers: what was answered before has been written."""
    serving = get_serving(request)
    await serving.answers.flush()
    return serving.store.answers


def key_of(request: Request) -> str | None:
    """The label of the caller's key; None for the admin key, which reaches everybody's answers."""
    if get_serving(request).keys.holds_admin_key(request):
        return None
    label: str = request.state.key_label
    return label


Written = Annotated[Answers, Depends(written_answers)]
Key = Annotated[str | None, Depends(key_of)]


@router.get(_COMPLETIONS)
def list_completions(
    request: Request,
    answers: Written,
    key: Key,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    model: str | None = None,
    user: str | None = None,
    created_after: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    created_before: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
) -> dict[str, Any]:
    """Stored completions, oldest first; `metadata[KEY]=VALUE` keeps those that carry it."""
    wanted = CompletionFilter(
        key=key,
        user=user,
        models=None if model is None else (model,),
        metadata={
            match[1]: value
            for name, value in request.query_params.items()
            if (match := _METADATA.fullmatch(name))
        },
        created_after=created_after,
        created_before=created_before,
    )
    page = answers.completions.list(Paging(after, limit, order == "desc"), wanted)
    return _page([_describe(stored) for stored in page.items], page)


@router.get(_COMPLETION)
def get_completion(completion_id: str, answers: Written, key: Key) -> dict[str, Any]:
    """One stored completion. Raises NotFoundError."""
    return _describe(answers.completions.get(completion_id, key))


@router.post(_COMPLETION)
def update_completion(
    completion_id: str, body: UpdateBody, answers: Written, key: Key
) -> dict[str, Any]:
    """Replace the metadata. Raises NotFoundError."""
    return _describe(answers.completions.update(completion_id, key, body.metadata))


@router.delete(_COMPLETION)
def delete_completion(completion_id: str, answers: Written, key: Key) -> dict[str, Any]:
    """Delete a completion and the feedback on it. Raises NotFoundError."""
    answers.completions.delete(completion_id, key)
    return {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}


@router.delete(_COMPLETIONS)
def delete_user(
    answers: Written, key: Key, user: Annotated[str, Query(min_length=1, max_length=1024)]
) -> dict[str, Any]:
    """Delete all answers to one end user (`user` of the requests), and the feedback on them."""
    completions, feedback = answers.completions.delete_user(user, key)
    return {
        "object": "user.deleted",
        "user": user,
        "completions": completions,
        "feedback": feedback,
        "deleted": True,
    }


@router.get(_COMPLETION + "/messages")
def list_messages(
    completion_id: str,
    answers: Written,
    key: Key,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    """The messages of the request. Raises NotFoundError, or InvalidRequestError for `after`."""
    messages = [
        _message(completion_id, index, message)
        for index, message in enumerate(
            answers.completions.get(completion_id, key).request["messages"]
        )
    ]
    if order == "desc":
        messages.reverse()
    ids = [message["id"] for message in messages]
    if after is not None and after not in ids:
        raise InvalidRequestError(
            f"'after' is '{after}', which is not in this list.", param="after"
        )
    start = 0 if after is None else ids.index(after) + 1
    shown = messages[start : start + limit]
    return _page(shown, Page(shown, start + limit < len(messages)))


def _page(data: list[dict[str, Any]], page: Page[Any]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


def _message(completion_id: str, index: int, message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    text = "".join(part["text"] for part in parts) if parts else content
    shown = {"id": f"{completion_id}-{index}", "content": text, "content_parts": parts}
    return {"refusal": None, "name": None, **message, **shown}


def _describe(stored: StoredCompletion) -> dict[str, Any]:
    return {
        **stored.response,
        **{name: stored.request.get(name) for name in _SHOWN},
        "metadata": stored.metadata,
        "input_user": stored.user,
        "alias": stored.alias,
        "arm": stored.arm,
    }
