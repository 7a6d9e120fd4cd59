"""Made-up answers of the routes about models, keys, data sets and feedback."""

from __future__ import annotations

import json
from typing import Any

MOMENT = 1_760_000_000


def serving_answers(text: str) -> dict[str, Any]:
    """By path; `text` stands wherever a user or a model may have put theirs."""
    listed = {
        "/admin/models": models(text),
        "/admin/keys": keys(text),
        "/admin/key_usage": usage(text),
        "/v1/feedback": feedback(text),
        "/v1/datasets": [dataset(text)],
        "/v1/chat/completions/chatcmpl-1/messages": [{"role": "user", "content": text}],
    }
    completion = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return {
        **{path: {"data": data, "has_more": False} for path, data in listed.items()},
        "/v1/datasets/preview": {"card": dataset(text)["card"], "records": [record(text)]},
        "/v1/files/file-1/content": json.dumps(record(text)) + "\n",
        "/v1/chat/completions/chatcmpl-1": completion,
        f"/admin/aliases/{text}": alias(text),
    }


def models(text: str) -> list[dict[str, Any]]:
    common = {"default": False, "pinned": False, "requests": {"running": 0, "waiting": 0},
              "idle_seconds": None, "pid": None}  # fmt: skip
    ready = {**common, "idle_seconds": 130.0, "pid": 4711, "state": "ready"}
    return [
        {**ready, "id": "tiny", "path": "/models/tiny", "weight_bytes": 9_000_000, "default": True,
         "pinned": True},
        {**ready, "id": text, "path": f"/models/{text}", "weight_bytes": 1_400_000_000,
         "pinned": True},
        {**common, "id": f"{text}-2", "path": f"/models/{text}-2", "state": "starting",
         "weight_bytes": 2_000_000_000},
        {**common, "id": f"{text}-3", "path": f"/models/{text}-3", "state": "on_disk",
         "weight_bytes": 3_000_000_000},
    ]  # fmt: skip


def keys(text: str) -> list[dict[str, Any]]:
    limits = {"requests_per_minute": 60, "tokens_per_minute": None, "concurrent_requests": 4}
    key = {"id": "key-1", "name": text, "hint": "...abcd", "label": "0badcafe",
           "created_at": MOMENT, "expires_at": MOMENT + 4_000_000_000, "revoked_at": None,
           "limits": limits, "priority": True}  # fmt: skip
    return [key, {**key, "id": "key-2", "revoked_at": MOMENT, "priority": False}]


def usage(text: str) -> list[dict[str, Any]]:
    use = {"requests": 12, "refused": 1, "prompt_tokens": 3400, "generated_tokens": 1200}
    days = ("2025-10-09", "2025-10-10")
    return [{"day": day, "label": "0badcafe", "name": text, **use} for day in days]


def feedback(text: str) -> list[dict[str, Any]]:
    given = {"id": "feedback-1", "completion_id": "chatcmpl-1", "choice": 0, "model": "tiny",
             "alias": text, "arm": "candidate", "author": text, "thumbs": "up", "score": None,
             "correction": None, "comment": text, "preferred_over": None, "tags": [text],
             "updated_at": MOMENT}  # fmt: skip
    corrected = {"id": "feedback-2", "thumbs": "down", "correction": text, "score": 0.2}
    return [given, {**given, **corrected}]


def record(text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    return {"messages": messages, "source": "chatcmpl-1:0"}


def dataset(text: str) -> dict[str, Any]:
    card = {"records": 40, "training": 36, "validation": 4, "conversations": 20,
            "characters": 5100, "reasons": {"liked": 30, "corrected": 10}, "models": {text: 40},
            "masked": {"email": 2}, "skipped": {"near_duplicate": 3}}  # fmt: skip
    return {"id": "dataset-1", "name": text, "method": "supervised", "version": 2, "card": card,
            "training_file": "file-1", "validation_file": None, "parent": "dataset-0",
            "created_at": MOMENT}  # fmt: skip


def alias(text: str) -> dict[str, Any]:
    known = {"name": text, "target": "tiny", "candidate": f"ft:tiny:{text}", "percentage": 12.5,
             "generation": 3, "created_at": MOMENT}  # fmt: skip
    arm = {"requests": 80, "errors": 1, "seconds": 40.0, "tokens": 4000}
    canary = {
        "state": "running",
        "target": "tiny",
        "candidate": known["candidate"],
        "policy": {"min_requests": 100, "max_error_rate": 0.02, "max_latency_ratio": None},
        "counts": {"target": arm, "candidate": arm, "wins": 5, "losses": 2},
        "reason": f"80 of 100 requests to each arm: {text}",
        "events": [{"message": text, "level": "warn", "created_at": MOMENT}],
    }
    return {**known, "history": [known], "canary": canary}
