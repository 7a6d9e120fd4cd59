"""From stored answers and feedback to training records, not cleaned yet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from hagane.store.answers.answers import Answers
from hagane.store.answers.completions import CompletionFilter, StoredCompletion
from hagane.store.answers.feedback import Feedback
from hagane.system.errors import NotFoundError
from hagane.training.datasets.spec import DatasetSpec

Message = dict[str, Any]
_AT_A_TIME = 200


@dataclass(frozen=True)
class SelectedExample:
    """One record to be: a prompt, an answer, and for DPO a worse one, for KTO whether it was liked.

    `source` is the completion and its choice, `why` the reason to take it, `conversation` the hash
    of the conversation's beginning.
    """

    source: str
    why: str
    model: str
    conversation: str
    prompt: list[Message]
    answer: Message
    tools: list[Any] | None = None
    rejected: Message | None = None
    desirable: bool | None = None

    def as_record(self) -> dict[str, Any]:
        """A line of a training file; `source` is a note that training leaves alone."""
        tools = {"tools": self.tools} if self.tools else {}
        if self.rejected is None:
            # The earlier answers are the prompt here; each is a record of its own if it is liked.
            earlier = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in self.prompt]
            label = {} if self.desirable is None else {"label": self.desirable}
            messages = [*earlier, self.answer]
            return {"messages": messages, **label, **tools, "source": self.source}
        return {
            "input": {"messages": self.prompt, **tools},
            "preferred_output": [self.answer],
            "non_preferred_output": [self.rejected],
            "source": self.source,
        }


def select(answers: Answers, spec: DatasetSpec, skipped: Counter[str]) -> Iterator[SelectedExample]:
    """The examples that `spec` means, oldest first; `skipped` counts the others by reason."""
    wanted = CompletionFilter(
        models=None if spec.models is None else tuple(spec.models),
        aliases=None if spec.aliases is None else tuple(spec.aliases),
        arms=None if spec.arms is None else tuple(spec.arms),
        metadata=spec.metadata,
        created_after=spec.created_after,
        created_before=spec.created_before,
    )
    stored = answers.completions.scan(wanted)
    while batch := list(islice(stored, _AT_A_TIME)):
        feedback = defaultdict(list)
        for given in answers.feedback.on([completion.id for completion in batch]):
            feedback[given.completion, given.choice].append(given)
        for completion in batch:
            for choice in completion.response["choices"]:
                judged = feedback[completion.id, choice["index"]]
                if spec.tags is not None and not _tagged(judged, spec.tags):
                    skipped["tags"] += 1
                elif spec.method == "dpo":
                    yield from _pairs(answers, completion, choice, judged, skipped)
                elif spec.method == "kto":
                    yield from _labelled(completion, choice, judged, spec, skipped)
                else:
                    yield from _supervised(completion, choice, judged, spec, skipped)


def _tagged(judged: Sequence[Feedback], tags: list[str]) -> bool:
    return any(set(tags) & set(given.tags) for given in judged)


def _supervised(
    completion: StoredCompletion,
    choice: dict[str, Any],
    judged: Sequence[Feedback],
    spec: DatasetSpec,
    skipped: Counter[str],
) -> Iterator[SelectedExample]:
    correction = _correction(judged)
    if correction is not None and "corrected" in spec.answers:
        yield _example(
            completion, choice, "corrected", {"role": "assistant", "content": correction}
        )
        return
    opinions = [_likes(given, spec.min_score) for given in judged]
    balance = sum(opinions)
    if balance < 0 or correction is not None:
        skipped["disliked"] += 1
    elif not any(opinions) and "unjudged" not in spec.answers:
        skipped["unjudged"] += 1
    elif any(opinions) and (balance == 0 or "liked" not in spec.answers):
        skipped["undecided" if balance == 0 else "liked"] += 1
    elif choice["finish_reason"] not in spec.finish_reasons:
        skipped["unfinished"] += 1
    else:
        why = "liked" if balance else "unjudged"
        yield _example(completion, choice, why, _answer(choice))


def _labelled(
    completion: StoredCompletion,
    choice: dict[str, Any],
    judged: Sequence[Feedback],
    spec: DatasetSpec,
    skipped: Counter[str],
) -> Iterator[SelectedExample]:
    """The answer with its label; one that was corrected is disliked, its correction liked."""
    correction = _correction(judged)
    opinions = [_likes(given, spec.min_score) for given in judged]
    balance = -1 if correction is not None else sum(opinions)
    if correction is not None and "corrected" in spec.answers:
        better = {"role": "assistant", "content": correction}
        made = _example(completion, choice, "corrected", better)
        yield replace(made, source=f"{made.source}:correction", desirable=True)
    if balance == 0:
        skipped["undecided" if any(opinions) else "unjudged"] += 1
    elif balance > 0 and "liked" not in spec.answers:
        skipped["liked"] += 1
    elif choice["finish_reason"] not in spec.finish_reasons:
        skipped["unfinished"] += 1
    else:
        why = "liked" if balance > 0 else "disliked"
        yield replace(_example(completion, choice, why, _answer(choice)), desirable=balance > 0)


def _likes(given: Feedback, min_score: float) -> int:
    """1 for a like, -1 for a dislike, 0 for neither."""
    if given.thumbs is not None:
        return 1 if given.thumbs == "up" else -1
    if given.score is not None:
        return 1 if given.score >= min_score else -1
    return 1 if given.preferred_over is not None else 0


def _pairs(
    answers: Answers,
    completion: StoredCompletion,
    choice: dict[str, Any],
    judged: Sequence[Feedback],
    skipped: Counter[str],
) -> Iterator[SelectedExample]:
    correction = _correction(judged)
    if correction is not None:
        better = {"role": "assistant", "content": correction}
        yield _example(completion, choice, "corrected", better, _answer(choice))
    worse = {(g.preferred_over, g.preferred_over_choice) for g in judged if g.preferred_over}
    for name, index in sorted(worse):
        try:
            other = answers.completions.get(name or "", None)
        except NotFoundError:
            skipped["other_not_stored"] += 1
            continue
        choices = {c["index"]: c for c in other.response["choices"]}
        if other.request["messages"] != completion.request["messages"] or index not in choices:
            skipped["other_question"] += 1
            continue
        rejected = _answer(choices[index])
        yield _example(completion, choice, "preferred", _answer(choice), rejected)
    if correction is None and not worse:
        skipped["unjudged"] += 1


def _correction(judged: Sequence[Feedback]) -> str | None:
    """The latest correction."""
    given = [g for g in judged if g.correction is not None]
    return max(given, key=lambda g: (g.updated_at, g.id)).correction if given else None


def _answer(choice: dict[str, Any]) -> Message:
    """The message, without the fields that training files have no place for."""
    message = choice["message"]
    kept = {key: message[key] for key in ("content", "tool_calls") if message.get(key)}
    return {"role": "assistant", "content": "", **kept}


def _example(
    completion: StoredCompletion,
    choice: dict[str, Any],
    why: str,
    answer: Message,
    rejected: Message | None = None,
) -> SelectedExample:
    kept = ("role", "content", "name", "tool_calls", "tool_call_id")
    return SelectedExample(
        source=f"{completion.id}:{choice['index']}",
        why=why,
        model=completion.model,
        conversation=completion.conversation,
        prompt=[
            {key: message[key] for key in kept if message.get(key) is not None}
            for message in completion.request["messages"]
        ],
        answer=answer,
        tools=completion.request.get("tools"),
        rejected=rejected,
    )
