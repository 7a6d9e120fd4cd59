"""Answers of the admin routes made up for what is rare or slow to bring about for real."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tests.web.fake_insight import insight_answers
from tests.web.fake_serving import serving_answers

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

STEPS = 240


def job(name: str, status: str, text: str, **known: Any) -> dict[str, Any]:
    extra = {"promote": "if_better", "adapter": f"ft:tiny:{text}:{name}", "plan": None,
             "progress": None, "result": None, **known.pop("extra", {})}  # fmt: skip
    return {
        "id": f"ftjob-{name}",
        "object": "fine_tuning.job",
        "created_at": 1_760_000_000,
        "finished_at": None,
        "model": "tiny",
        "fine_tuned_model": None,
        "status": status,
        "hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
        "training_file": "file-1",
        "validation_file": None,
        "trained_tokens": None,
        "error": None,
        "seed": 7,
        "extra": extra,
        **known,
    }


def events(text: str) -> list[dict[str, Any]]:
    """A message, and the metrics of a whole run with a validation every 40 steps."""
    common = {"object": "fine_tuning.job.event", "created_at": 1_760_000_000, "level": "info"}
    found = [{**common, "id": "e0", "type": "message", "message": text, "data": {}}]
    for step in range(1, STEPS + 1):
        loss = 1.2 + 2 * math.exp(-step / 50) + 0.15 * math.sin(step * 1.7)
        data = {"step": step, "train_loss": loss}
        data |= {"valid_loss": 1.3 + 2 * math.exp(-step / 60)} if step % 40 == 0 else {}
        line = {**common, "id": f"e{step}", "type": "metrics", "message": "", "data": data}
        found.append(line)
    return found


def answers(text: str) -> dict[str, Any]:
    """By path; `text` stands wherever a user or a model may have put theirs."""
    progress = {"step": 120, "steps": STEPS, "tokens_per_second": 812.5, "eta_seconds": 200}
    plan = {"learning_rate": 2.1e-4}
    name = f"ft:tiny:{text}:2"
    settings = {"result": {"step": 80}, "plan": plan, "rank": 8, "patience": 3, "quantize": "int8",
                "target_modules": ["q_proj"], "rslora": True, "dora": True, "full": False,
                "trained_tokens": ["<a>", "<b c>"], "checkpointing": False}  # fmt: skip
    jobs = [
        job("1", "running", text, extra={"progress": progress, "plan": plan}),
        job(
            "2", "succeeded", text, fine_tuned_model=name, finished_at=1_760_000_300, extra=settings
        ),
        job("3", "failed", text, error={"code": "x", "message": text, "param": None}),
        job("4", "queued", text, training_file=text),
    ]
    pretraining = {
        "id": "ftjob-5",
        "object": "pretraining.job",
        "created_at": 1_760_000_000,
        "finished_at": 1_760_000_900,
        "name": text,
        "status": "succeeded",
        "config": {"steps": STEPS, "batch_rows": 8, "seed": 3},
        "trained_tokens": 491_520,
        "error": None,
        "progress": progress,
        "result": {"directory": f"/models/{text}", "bits_per_byte": {text: 1.42}},
    }
    checkpoint = {
        "id": "ftckpt_1",
        "step_number": 80,
        "fine_tuned_model_checkpoint": f"ft:tiny:{text}:ckpt-step-80",
        "metrics": {"step": 80, "train_loss": 1.62, "valid_loss": 1.71},
    }
    adapter = {"object": "adapter", "name": f"ft:tiny:{text}", "base_model": "tiny",
               "promoted": True, "job": "ftjob-2", "directory": f"/data/{text}",
               "created_at": 1_760_000_300}  # fmt: skip
    alias = {"name": text, "target": "tiny", "candidate": f"ft:tiny:{text}", "percentage": 12.5,
             "generation": 3, "created_at": 1_760_000_400}  # fmt: skip
    file = {"id": "file-1", "filename": f"{text}.jsonl", "bytes": 48_213, "purpose": "fine-tune",
            "created_at": 1_760_000_000}  # fmt: skip
    report = {
        "problems": [[3, text], [17, "messages is missing"]],
        "total_problems": 104,
        "examples": 380,
        "tokens": 91_000,
        "trained_tokens": 40_211,
        "truncated": 2,
        "duplicates": 5,
        "steps": 285,
        "seconds": 340.0,
        "memory_bytes": 910_000_000,
    }
    status = {
        "model": "tiny",
        "engine": {"state": "ready", "context_length": 512},
        "requests": {"running": 3, "waiting": 1},
        "kv_cache": {"usage_ratio": 0.42},
        "tokens_per_second": 612.4,
        "version": "1.2.3",
        "job": {"id": "ftjob-1", "progress": progress},
        "memory": {"total_bytes": 16_000_000_000, "available_bytes": 9_000_000_000},
        "disk": {"total_bytes": 500_000_000_000, "free_bytes": 120_000_000_000},
    }
    listed = {
        "/v1/fine_tuning/jobs": jobs,
        "/v1/fine_tuning/jobs/ftjob-1/checkpoints": [checkpoint],
        "/v1/fine_tuning/jobs/ftjob-2/checkpoints": [{**checkpoint, "id": "ftckpt_2"}],
        **{f"/v1/fine_tuning/jobs/ftjob-{one}/checkpoints": [] for one in (3, 4, 5)},
        "/admin/pretraining/jobs": [pretraining],
        "/v1/files": [file],
        "/admin/adapters": [adapter, {**adapter, "name": f"{text}-2", "promoted": False}],
        "/admin/aliases": [alias],
        "/v1/models": [{"id": "tiny"}, {"id": f"ft:tiny:{text}", "parent": "tiny"}],
    }
    return {
        **{path: {"data": data, "has_more": False} for path, data in listed.items()},
        **{f"/v1/fine_tuning/jobs/{one['id']}": one for one in jobs},
        "/v1/fine_tuning/jobs/ftjob-5": pretraining,
        "/admin/status": status,
        **serving_answers(text),
        **insight_answers(text),
        "/v1/files/file-1/report": {"training": report, "validation": None, "plan": None},
    }


def pretend(page: Page, text: str) -> None:
    """Have the admin routes answer so; other requests reach the server."""
    known = answers(text)

    def answer(route: Route) -> None:
        url = urlsplit(route.request.url)
        if url.path.endswith("/events"):
            rest = [] if "after=" in url.query else events(text)
            body = "".join(f"data: {json.dumps(event)}\n\n" for event in rest)
            route.fulfill(content_type="text/event-stream", body=f"{body}data: [DONE]\n\n")
        elif unquote(url.path) in known:
            found = known[unquote(url.path)]
            route.fulfill(**({"body": found} if isinstance(found, str) else {"json": found}))
        else:
            route.fallback()

    page.route("**/v1/**", answer)
    page.route("**/admin/**", answer)
