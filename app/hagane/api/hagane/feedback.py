"""/v1/feedback: what people say of answers. A key judges its own answers, the admin key all."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.answers import Origin
from hagane.api.fields import Body, Count, Number
from hagane.api.openai.stored_completions import Key, Written
from hagane.api.serving import Serving, get_serving
from hagane.store.answers.feedback import Feedback
from hagane.store.paging import Paging
from hagane.system.errors import InvalidRequestError, NotFoundError

router = guarded_router(prefix="/v1/feedback")

_Id = Annotated[str, Field(min_length=1, max_length=128)]
_Choice = Annotated[Count, Field(ge=0, lt=128)]
_Tag = Annotated[str, Field(min_length=1, max_length=64)]


class FeedbackBody(Body):
    """POST /v1/feedback. The same again changes nothing; another judgement replaces the first.

    `author` distinguishes the judges of one answer.
    """

    completion_id: _Id
    choice: _Choice = 0
    author: Annotated[str, Field(max_length=256)] = ""
    thumbs: Literal["up", "down"] | None = None
    score: Annotated[Number, Field(ge=0, le=1)] | None = None
    correction: Annotated[str, Field(min_length=1)] | None = None
    preferred_over: _Id | None = None
    preferred_over_choice: _Choice = 0
    comment: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    tags: Annotated[list[_Tag], Field(max_length=16)] = Field([])


@router.post("")
def give(body: FeedbackBody, request: Request, answers: Written, key: Key) -> dict[str, Any]:
    """Judge an answer. Raises NotFoundError for one that is neither recent nor stored."""
    serving = get_serving(request)
    own = (body.completion_id, body.choice)
    if own == (body.preferred_over, body.preferred_over_choice):
        raise InvalidRequestError(
            "'preferred_over' names the answer itself; name the other one.", param="preferred_over"
        )
    origin = _origin(serving, body.completion_id, key, "completion_id")
    given = body.model_dump(exclude={"completion_id"})
    if body.preferred_over is not None:
        other = _origin(serving, body.preferred_over, key, "preferred_over")
        given["preferred_over_arm"] = other.arm if other.alias == origin.alias else None
    feedback = Feedback(completion=body.completion_id, **vars(origin), **given)
    if not feedback.kinds:
        raise InvalidRequestError(
            "The feedback is empty: give 'thumbs', 'score', 'correction', 'preferred_over' or "
            "'comment'.",
            param="thumbs",
        )
    kept, changed = answers.feedback.put(feedback)
    if changed:
        for kind in kept.kinds:
            serving.metrics.feedback.labels(
                kind, kept.model, kept.alias or "", kept.arm or ""
            ).inc()
    return describe(kept)


@router.get("")
def list_feedback(
    answers: Written,
    key: Key,
    completion_id: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """Feedback, newest first."""
    page = answers.feedback.list(Paging(after, limit), key, completion_id)
    data = [describe(feedback) for feedback in page.items]
    return {"object": "list", "data": data, "has_more": page.has_more}


@router.delete("/{feedback_id}")
def delete_feedback(feedback_id: str, answers: Written, key: Key) -> dict[str, Any]:
    """Raises NotFoundError."""
    answers.feedback.delete(feedback_id, key)
    return {"id": feedback_id, "object": "feedback", "deleted": True}


def _origin(serving: Serving, completion_id: str, key: str | None, param: str) -> Origin:
    """Where the answer came from. Raises NotFoundError, also for another key's."""
    origin = serving.answers.origin(completion_id)
    if origin is None:
        try:
            stored = serving.store.answers.completions.get(completion_id, key)
        except NotFoundError as error:
            raise NotFoundError(_unknown(completion_id), param=param) from error
        return Origin(stored.key, stored.user, stored.model, stored.alias, stored.arm)
    if key is not None and origin.key != key:
        raise NotFoundError(_unknown(completion_id), param=param)
    return origin


def _unknown(completion_id: str) -> str:
    return (
        f"There is no answer '{completion_id}' to judge: it is neither stored nor among the latest "
        "answers of this server."
    )


def describe(feedback: Feedback) -> dict[str, Any]:
    """Feedback as JSON."""
    shown = {name: value for name, value in vars(feedback).items() if name != "key"}
    completion = shown.pop("completion")
    return {"object": "feedback", "completion_id": completion, **shown}
