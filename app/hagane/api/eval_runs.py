"""Runs evals in the background, at the lowest priority: one run at a time, a few items at once.

Finished items are in the store: after a restart a run goes on with the items that are left.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from pydantic import TypeAdapter

from hagane.api.answering import prepare_answer
from hagane.api.generation import Generation
from hagane.api.limits import Account
from hagane.api.openai.eval_schemas import DataSource, Source
from hagane.api.serving import Serving
from hagane.generation.conversation import Conversation, Turn
from hagane.generation.events import TextDelta
from hagane.generation.request import Parameters
from hagane.graders.grade import Grading
from hagane.graders.spec import Grader
from hagane.graders.template import fill, look_up
from hagane.pool.messages import IDLE_PRIORITY
from hagane.store.answers.completions import CompletionFilter
from hagane.store.answers.evals import EvalItem, EvalRun
from hagane.store.database import strikes_all
from hagane.system.errors import (
    EngineCrashedError,
    EngineUnavailableError,
    HaganeError,
    InvalidRequestError,
    QueueFullError,
)
from hagane.system.loops import BackgroundLoop

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_AT_ONCE = 4
_MOST_TRIES = 60
_RETRY_SECONDS = 1.0
# For one answer: others may go first for as long.
_PATIENCE_SECONDS = 86_400.0
_MOST_TOKENS = 1024
_MOST_ROWS = 10_000
_CRITERIA: TypeAdapter[list[Grader]] = TypeAdapter(list[Grader])


def _first(error: Exception) -> Exception:
    """The first exception of a group of tasks."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _reason(error: Exception, run: EvalRun) -> dict[str, str]:
    if isinstance(error, HaganeError):
        return {"code": error.code, "message": str(error)}
    logger.error("run %s fails by a fault of this program", run.id, exc_info=error)
    # The text may be what cannot be stored.
    message = f"{type(error).__name__}: {str(error)!a}; see the server's log."
    return {"code": "internal_error", "message": message}


class EvalRunner:
    """Takes the oldest run that has not ended, until there is none; `loop` is its loop."""

    def __init__(self, serving: Serving, account: Account) -> None:
        self._serving, self._account = serving, account
        self._grading = Grading(self._ask)
        self.loop = BackgroundLoop("eval runs", self._round)

    async def stop(self) -> None:
        """End; a run that is under way goes on after the next start."""
        await self.loop.stop()
        await asyncio.to_thread(self._grading.sandbox.close)

    async def _round(self) -> float:
        evals = self._serving.store.answers.evals
        run = await asyncio.to_thread(evals.next_run)
        if run is None:
            return _POLL_SECONDS
        try:
            await self._work(run)
        except Exception as raised:
            error = _first(raised)
            if strikes_all(error):
                raise
            reason = _reason(error, run)
            await asyncio.to_thread(evals.move, run.id, "failed", error=reason)
        return 0.0

    async def _work(self, run: EvalRun) -> None:
        evals = self._serving.store.answers.evals
        source = DataSource.model_validate(run.data_source)
        criteria = _CRITERIA.validate_python(
            (await asyncio.to_thread(evals.get, run.eval)).testing_criteria
        )
        rows = await asyncio.to_thread(self._rows, source.source)
        done = {number for number, _, _ in await asyncio.to_thread(evals.results, run.id)}
        await asyncio.to_thread(evals.move, run.id, "in_progress", total=len(rows))
        left = iter([(n, row) for n, row in enumerate(rows) if n not in done])

        async def work() -> None:
            for number, row in left:
                if not await asyncio.to_thread(evals.move, run.id, "in_progress"):
                    # Canceled or deleted meanwhile.
                    return
                item = await self._item(run, source, criteria, number, row)
                await asyncio.to_thread(evals.add_item, item)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(work())
        await asyncio.to_thread(evals.move, run.id, "completed")

    async def _item(
        self,
        run: EvalRun,
        source: DataSource,
        criteria: Sequence[Grader],
        number: int,
        row: dict[str, Any],
    ) -> EvalItem:
        item, sample, results = row["item"], row.get("sample") or {}, []
        try:
            if source.type == "completions":
                sample = await self._sample(source, item)
            for grader in criteria:
                grade = await self._grading.grade(grader, item, sample)
                results.append({"name": grader.name, "type": grader.type, **asdict(grade)})
        except HaganeError as error:
            sample = {**sample, "error": {"code": error.code, "message": str(error)}}
            status: Any = "error"
        else:
            status = "pass" if all(result["passed"] for result in results) else "fail"
        return EvalItem(
            run=run.id, number=number, status=status, item=item, sample=sample, results=results
        )

    async def _sample(self, source: DataSource, item: dict[str, Any]) -> dict[str, Any]:
        messages = _messages(source, item)
        wanted = source.sampling_params
        given = {} if wanted is None else wanted.model_dump(exclude_none=True)
        text = await self._ask(source.model or "", messages, given)
        output = [{"role": "assistant", "content": text}]
        said = {"input": messages, "output": output, "output_text": text}
        return {**said, "model": source.model, **given}

    async def _ask(self, model: str, messages: list[dict[str, str]], given: dict[str, Any]) -> str:
        """The answer of a model that is served here."""
        serving = self._serving
        resolved = await serving.resolve(model)
        # Evals are no traffic of an alias: its canary must not count them.
        resolved = replace(resolved, ref=replace(resolved.ref, alias=None, arm=None))
        roles: dict[str, Any] = {"developer": "system"}
        turns = tuple(Turn(roles.get(m["role"], m["role"]), m["content"]) for m in messages)
        parameters = Parameters(
            max_tokens=given.get("max_completion_tokens", _MOST_TOKENS),
            temperature=given.get("temperature", 0.0),
            top_p=given.get("top_p"),
            seed=given.get("seed"),
            priority=IDLE_PRIORITY,
            timeout=_PATIENCE_SECONDS,
        )
        account = self._account
        size = sum(len(turn.text) for turn in turns)
        generation = await serving.offload.run_blocking(
            size, prepare_answer, serving, account, resolved, Conversation(turns), parameters
        )
        for _ in range(_MOST_TRIES - 1):
            try:
                return await self._text(generation)
            except (QueueFullError, EngineUnavailableError, EngineCrashedError):
                # Others go first, and an engine that died is started again.
                await asyncio.sleep(_RETRY_SECONDS)
        return await self._text(generation)

    async def _text(self, generation: Generation) -> str:
        pieces = []
        updates = generation.updates(self._serving, self._account)
        async with aclosing(updates):
            async for update in updates:
                pieces += [e.text for e in update.events if isinstance(e, TextDelta)]
        return "".join(pieces)

    def _rows(self, source: Source) -> list[dict[str, Any]]:
        """The items of a source, each with the answer to grade, if there is one."""
        store = self._serving.store
        if source.content is not None:
            return [row.model_dump() for row in source.content]
        if source.type == "file_id":
            return _read_rows(store.files, source.id or "")
        wanted = CompletionFilter(
            models=None if source.model is None else (source.model,),
            metadata=source.metadata or {},
            created_after=source.created_after,
            created_before=source.created_before,
        )
        found = islice(store.answers.completions.scan(wanted), source.limit or _MOST_ROWS)
        return [_stored_row(stored.id, stored.request, stored.response) for stored in found]


def _read_rows(files: Any, file_id: str) -> list[dict[str, Any]]:
    files.get(file_id)
    rows = []
    with files.local(file_id).open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, _MOST_ROWS), 1):
            try:
                row = json.loads(line)
                rows.append({"item": dict(row["item"]), "sample": row.get("sample")})
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InvalidRequestError(
                    f"Line {number} of the file '{file_id}' is no JSON object with an object "
                    "'item'.",
                    param="data_source.source.id",
                ) from None
    return rows


def _stored_row(name: str, request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    text = response["choices"][0]["message"].get("content") or ""
    item = {"id": name, "input": request["messages"], "output_text": text}
    return {"item": item, "sample": {"output_text": text, "model": response["model"]}}


def _messages(source: DataSource, item: dict[str, Any]) -> list[dict[str, str]]:
    """The request to the model about an item. Raises InvalidRequestError."""
    asked, values = source.input_messages, {"item": item}
    if asked is not None and asked.template is not None:
        return [{"role": m.role, "content": fill(m.content, values)} for m in asked.template]
    path = "item.input" if asked is None else asked.item_reference or ""
    found = look_up(path, values)
    try:
        return [{"role": str(m["role"]), "content": _text(m["content"])} for m in found]
    except (TypeError, KeyError):
        raise InvalidRequestError(
            f"'{path}' of an item is no list of messages with role and content.",
            param="data_source.input_messages.item_reference",
        ) from None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
