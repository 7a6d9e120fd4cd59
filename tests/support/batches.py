"""Requests of the tests of batches, and how they wait for one."""

from __future__ import annotations

import json
import time

ENDPOINT = "/v1/chat/completions"


def lines(count: int, **fields) -> bytes:
    """An input file of `count` equal requests, named r0, r1, ..."""
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "Once"}],
        "max_tokens": 4, "temperature": 0, **fields,
    }  # fmt: skip
    every = [
        {"custom_id": f"r{number}", "method": "POST", "url": ENDPOINT, "body": body}
        for number in range(count)
    ]
    return "\n".join(map(json.dumps, every)).encode()


def begin(client, content: bytes, endpoint: str = ENDPOINT):
    """Upload an input file and start its batch."""
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"}
    )


def wait(client, batch, *statuses: str, seconds: float = 60):
    """The batch once it has one of `statuses`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = client.batches.retrieve(batch.id)
        if found.status in statuses:
            return found
        time.sleep(0.05)
    raise AssertionError(f"still {found.status}: {found.request_counts}")


def results(client, file_id) -> dict[str, dict]:
    """The lines of an output or error file by the names of their requests."""
    text = client.files.content(file_id).text
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}
