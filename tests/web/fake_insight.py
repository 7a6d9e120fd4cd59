"""Made-up answers of the routes about exports, evals, the log and the load over time."""

from __future__ import annotations

from typing import Any

from tests.web.fake_serving import MOMENT


def insight_answers(text: str) -> dict[str, Any]:
    """By path; `text` stands wherever a user or a model may have put theirs."""
    runs = [run("1", "tiny", 5), run("2", f"ft:tiny:{text}", 8), unfinished(text)]
    evals = {
        "id": "eval-1",
        "name": text,
        "testing_criteria": [{"name": text, "type": "text_similarity"}],
        "metadata": {"file": "file-1"},
        "created_at": MOMENT,
    }
    listed = {
        "/admin/exports": exports(text),
        "/admin/models/pulls": pulls(text),
        "/admin/history": history(),
        "/admin/logs": log(text),
        "/v1/evals": [evals],
        "/v1/evals/eval-1/runs": runs,
        "/v1/evals/eval-1/runs/evalrun-1/output_items": items(text, 0.25),
        "/v1/evals/eval-1/runs/evalrun-2/output_items": items(text, 0.75),
    }
    return {
        **{path: {"data": data, "has_more": False} for path, data in listed.items()},
        "/v1/evals/eval-1": evals,
        "/v1/evals/eval-1/compare": {
            "win_rate": {"low": 0.48, "share": 0.65, "high": 0.79},
            "difference": {"low": -0.02, "share": 0.2, "high": 0.42},
        },
    }


def exports(text: str) -> list[dict[str, Any]]:
    common = {"model": f"ft:tiny:{text}", "format": "gguf", "type": "Q8_0", "created_at": MOMENT,
              "filename": f"{text}.gguf", "stage": None, "progress": None, "error": None,
              "bytes": None, "path": None}  # fmt: skip
    return [
        {**common, "id": "export-1", "status": "succeeded", "bytes": 12_000_000,
         "path": f"/data/exports/{text}.gguf"},
        {**common, "id": "export-2", "status": "running", "stage": "writing", "progress": 0.4},
        {**common, "id": "export-3", "status": "failed",
         "error": {"code": "disk_full", "message": text}},
        {**common, "id": "export-4", "status": "queued", "format": "adapter", "type": None},
    ]  # fmt: skip


def pulls(text: str) -> list[dict[str, Any]]:
    common = {"model": f"{text}/{text}", "name": text, "received_bytes": 1_000_000,
              "total_bytes": 4_000_000, "error": None, "created_at": MOMENT}  # fmt: skip
    return [
        {**common, "id": "pull-1", "status": "running"},
        {**common, "id": "pull-2", "status": "failed", "error": text},
    ]


def history() -> list[dict[str, Any]]:
    return [
        {"at": MOMENT + 5.0 * step, "seconds": 5.0, "requests": step % 4, "prompt_tokens": 400,
         "generated_tokens": 100 * (step % 7), "first_token_seconds": 0.1 if step % 3 else None,
         "request_seconds": 0.8, "running": step % 3, "waiting": 0, "cache_ratio": 0.01 * step,
         "available_bytes": 9_000_000_000, "free_bytes": 120_000_000_000}
        for step in range(40)
    ]  # fmt: skip


def log(text: str) -> list[dict[str, Any]]:
    common = {"logger": "hagane.server.app", "request_id": None, "process": "server"}
    return [
        {**common, "id": 1, "created_at": MOMENT, "level": "info", "message": f"{text} is ready"},
        {**common, "id": 2, "created_at": MOMENT + 1, "level": "error", "process": "engine",
         "request_id": "req_1", "message": f"it failed\nTraceback: {text}"},
        {**common, "id": 3, "created_at": MOMENT + 2, "level": "critical", "message": text},
    ]  # fmt: skip


def run(name: str, model: str, passed: int) -> dict[str, Any]:
    counts = {"total": 10, "passed": passed, "failed": 9 - passed, "errored": 1}
    return {"id": f"evalrun-{name}", "name": model, "model": model, "status": "completed",
            "result_counts": counts, "error": None, "created_at": MOMENT}  # fmt: skip


def unfinished(text: str) -> dict[str, Any]:
    return {**run("3", f"{text}:ckpt-step-80", 2), "status": "in_progress"}


def items(text: str, score: float) -> list[dict[str, Any]]:
    item = {"question": text, "answer": text}
    results = [{"name": "similar", "score": score, "passed": score > 0.5}]
    return [
        {"id": f"item-{number}-{score}", "status": "pass" if score > 0.5 else "fail",
         "datasource_item_id": number, "datasource_item": item, "results": results,
         "sample": {"output_text": text}}
        for number in range(3)
    ]  # fmt: skip
