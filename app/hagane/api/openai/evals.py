"""/v1/evals: OpenAI's contract for grading answers of what is served here. Admin only."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Query, Request

from hagane.api.access import guarded_router
from hagane.api.openai.eval_schemas import (
    EvalBody,
    EvalUpdateBody,
    RunBody,
    describe_eval,
    describe_item,
    describe_run,
)
from hagane.api.openai.stored_completions import Written
from hagane.api.serving import get_serving
from hagane.evaluation.comparison import compare_scores
from hagane.store.answers.evals import Eval, EvalRun, Evals
from hagane.store.paging import Page, Paging
from hagane.system.errors import ConflictError

router = guarded_router(prefix="/v1/evals")

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
_RUN = "/{eval_id}/runs/{run_id}"


@router.post("", status_code=201)
def create_eval(body: EvalBody, request: Request) -> dict[str, Any]:
    """Create an eval: its questions and how answers are graded."""
    made = Eval(
        name=body.name,
        data_source_config=body.data_source_config.model_dump(exclude_none=True),
        testing_criteria=[grader.model_dump(mode="json") for grader in body.testing_criteria],
        metadata=body.metadata or {},
    )
    _evals(request).add(made)
    return describe_eval(made)


@router.get("")
def list_evals(
    request: Request, after: str | None = None, limit: Limit = 20, order: Order = "asc"
) -> dict[str, Any]:
    """The evals, oldest first."""
    page = _evals(request).list(Paging(after, limit, order == "desc"))
    return _page([describe_eval(made) for made in page.items], page)


@router.get("/{eval_id}")
def get_eval(eval_id: str, request: Request) -> dict[str, Any]:
    """One eval. Raises NotFoundError."""
    return describe_eval(_evals(request).get(eval_id))


@router.post("/{eval_id}")
def update_eval(eval_id: str, body: EvalUpdateBody, request: Request) -> dict[str, Any]:
    """Another name or metadata. Raises NotFoundError."""
    return describe_eval(_evals(request).update(eval_id, **body.model_dump(exclude_none=True)))


@router.delete("/{eval_id}")
def delete_eval(eval_id: str, request: Request) -> dict[str, Any]:
    """Delete an eval with its runs. Raises NotFoundError."""
    _evals(request).delete(eval_id)
    return {"object": "eval.deleted", "deleted": True, "eval_id": eval_id}


@router.post("/{eval_id}/runs", status_code=201)
async def create_run(eval_id: str, body: RunBody, request: Request, _: Written) -> dict[str, Any]:
    """Queue a run. Raises NotFoundError, or ModelNotFoundError for the model."""
    serving, source = get_serving(request), body.data_source
    evals = serving.store.answers.evals
    made = await asyncio.to_thread(evals.get, eval_id)
    if source.model is not None:
        await serving.find_ref(source.model)
    if source.source.id is not None:
        await asyncio.to_thread(serving.store.files.get, source.source.id)
    run = EvalRun(
        eval=eval_id,
        name=body.name,
        model=source.model or "",
        data_source=source.model_dump(exclude_none=True),
        metadata=body.metadata or {},
    )
    await asyncio.to_thread(evals.add_run, run)
    return describe_run(run, made.testing_criteria, ())


@router.get("/{eval_id}/runs")
def list_runs(
    eval_id: str,
    request: Request,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: str | None = None,
) -> dict[str, Any]:
    """The runs of an eval. Raises NotFoundError."""
    evals = _evals(request)
    evals.get(eval_id)
    page = evals.runs(eval_id, Paging(after, limit, order == "desc"), status)
    return _page([_describe(evals, run) for run in page.items], page)


@router.get(_RUN)
def get_run(eval_id: str, run_id: str, request: Request) -> dict[str, Any]:
    """One run with its counts so far. Raises NotFoundError."""
    evals = _evals(request)
    return _describe(evals, evals.run(run_id, eval_id))


@router.post(_RUN)
@router.post(f"{_RUN}/cancel")
def cancel_run(eval_id: str, run_id: str, request: Request) -> dict[str, Any]:
    """End a run after the items that are being answered. Raises NotFoundError, ConflictError."""
    evals = _evals(request)
    run = evals.run(run_id, eval_id)
    if not evals.cancel_run(run_id):
        raise ConflictError(
            f"The run '{run_id}' is {run.status}; only one that has not ended can be canceled.",
            param="run_id",
        )
    return _describe(evals, evals.run(run_id))


@router.delete(_RUN)
def delete_run(eval_id: str, run_id: str, request: Request) -> dict[str, Any]:
    """Delete a run with its results. Raises NotFoundError, or ConflictError while it runs."""
    evals = _evals(request)
    if evals.run(run_id, eval_id).status == "in_progress":
        raise ConflictError(f"The run '{run_id}' is in progress; cancel it first.", param="run_id")
    evals.delete_run(run_id)
    return {"object": "eval.run.deleted", "deleted": True, "run_id": run_id}


@router.get(_RUN + "/output_items")
def list_items(
    eval_id: str,
    run_id: str,
    request: Request,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["pass", "fail", "error"] | None = None,
) -> dict[str, Any]:
    """The results of a run, in the order in which they came. Raises NotFoundError."""
    evals = _evals(request)
    evals.run(run_id, eval_id)
    page = evals.items(run_id, Paging(after, limit, order == "desc"), status)
    return _page([describe_item(item, eval_id) for item in page.items], page)


@router.get(_RUN + "/output_items/{output_item_id}")
def get_item(eval_id: str, run_id: str, output_item_id: str, request: Request) -> dict[str, Any]:
    """One result. Raises NotFoundError."""
    evals = _evals(request)
    evals.run(run_id, eval_id)
    return describe_item(evals.item(output_item_id), eval_id)


@router.get("/{eval_id}/compare")
def compare(eval_id: str, baseline: str, candidate: str, request: Request) -> dict[str, Any]:
    """Two runs side by side: win rate and differences, over all graders and by each.

    Raises NotFoundError.
    """
    evals = _evals(request)
    names = [criterion["name"] for criterion in evals.get(eval_id).testing_criteria]
    scores = []
    for run_id in (baseline, candidate):
        evals.run(run_id, eval_id)
        results = [(n, graded) for n, status, graded in evals.results(run_id) if status != "error"]
        scores.append(
            {
                name: {
                    number: sum(r["score"] for r in graded if name in (None, r["name"]))
                    for number, graded in results
                }
                for name in (None, *names)
            }
        )
    sides = {name: asdict(compare_scores(scores[0][name], scores[1][name])) for name in names}
    return {
        "object": "eval.comparison",
        "eval_id": eval_id,
        "baseline": baseline,
        "candidate": candidate,
        **asdict(compare_scores(scores[0][None], scores[1][None])),
        "per_testing_criteria": sides,
    }


def _evals(request: Request) -> Evals:
    return get_serving(request).store.answers.evals


def _describe(evals: Evals, run: EvalRun) -> dict[str, Any]:
    return describe_run(run, evals.get(run.eval).testing_criteria, evals.results(run.id))


def _page(data: list[dict[str, Any]], page: Page[Any]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }
