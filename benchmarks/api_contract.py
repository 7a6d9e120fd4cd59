"""Check by schemathesis that a real server keeps its own openapi.json.

Bounded in time and in requests a second. Schemathesis lives in an environment of its own:
    python -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install schemathesis

Usage: python benchmarks/api_contract.py ENVIRONMENT [--seconds 600] [--rate 100/s]

Every check but one runs. `positive_data_acceptance` cannot hold: what a schema cannot say (a file
that exists, a prompt that fits) is refused with 400 or 409 all the same. Files, jobs, stored
answers and all other kinds of objects are made before, and in the document that is tested against
every second name is one of theirs, so that requests reach them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

MODEL, ADMIN_KEY = "hagane-mini", "admin-key"
CHAT = "/v1/chat/completions"
# A deadline that passes is 504, as `timeout` asked for; elsewhere it would be undocumented.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
# Objects of each kind to delete.
SPARE = 12
# Requests that would be long for what they show.
FLAGS = ("--context-length", "128", "--threads", "1", "--log-level", "error")


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server with an admin key on a port of its own, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", MODEL, "--port", str(port)]
    environment = os.environ | {
        "HAGANE_ADMIN_KEY": ADMIN_KEY,
        "HAGANE_API_KEYS": "chat-key",
        "HAGANE_DATA_DIR": str(folder / "data"),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *FLAGS], env=environment, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return process, url
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit((folder / "log").read_text())


class Objects:
    """What lies on the server before the test: of each kind some to keep, and some to delete.

    Ids by the parameter or field that names such.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.kept: dict[str, list[str]] = {"model_id": [MODEL]}
        self.spare: dict[str, list[str]] = {}
        self._make_files()
        self._make_answers()
        self._make_jobs()
        self._make_evals()

    def _post(self, path: str, body: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        answer = self._client.post(path, json=body, **more)
        if not answer.is_success:
            raise SystemExit(f"POST {path}: {answer.status_code} {answer.text}")
        made: dict[str, Any] = answer.json()
        return made

    def _several(self, kind: str, make: Callable[[int], str]) -> None:
        self.kept[kind] = [make(0)]
        self.spare[kind] = [make(number) for number in range(1, SPARE + 1)]

    def _make_files(self) -> None:
        line = {"messages": [{"role": role, "content": "Hi"} for role in ("user", "assistant")]}
        asked = {"model": MODEL, "max_tokens": 2, "messages": line["messages"][:1]}
        wanted = {"custom_id": "a", "method": "POST", "url": CHAT, "body": asked}

        def upload(number: int, purpose: str = "fine-tune", row: Any = line) -> str:
            text = f"{json.dumps(row)}\n" + json.dumps(row | {"custom_id": f"{number}"})
            form = {"files": {"file": ("a.jsonl", text)}, "data": {"purpose": purpose}}
            made: str = self._post("/v1/files", **form)["id"]
            return made

        self._several("file_id", upload)
        line["messages"][1]["content"] = "Hello"
        self.kept["training_file"] = self.kept["validation_file"] = self.kept["file_id"]
        file = upload(0, "batch", wanted)
        self.kept["input_file_id"] = [file]
        batch = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        self.kept["batch_id"] = [self._post("/v1/batches", batch)["id"]]

    def _make_answers(self) -> None:
        asked = {"model": MODEL, "max_tokens": 4, "store": True}
        said = {"role": "user", "content": "Hi"}

        def complete(number: int) -> str:
            messages = [{"role": "user", "content": f"Hi {number}"}]
            made: str = self._post(CHAT, {**asked, "messages": messages})["id"]
            return made

        def respond(_: int) -> str:
            body = {"model": MODEL, "input": "Hi", "max_output_tokens": 4}
            made: str = self._post("/v1/responses", body)["id"]
            return made

        def converse(_: int) -> str:
            made: str = self._post("/v1/conversations", {"items": [said] * SPARE})["id"]
            return made

        def judge(number: int) -> str:
            body = {"completion_id": completion, "correction": "Hello", "author": f"{number}"}
            made: str = self._post("/v1/feedback", body)["id"]
            return made

        self._several("completion_id", complete)
        (completion,) = self.kept["completion_id"]
        self._several("feedback_id", judge)
        self._several("response_id", respond)
        self.kept["previous_response_id"] = self.kept["response_id"]
        self._several("conversation_id", converse)
        (conversation,) = self.kept["conversation_id"]
        items = self._client.get(f"/v1/conversations/{conversation}/items").json()["data"]
        ids = [item["id"] for item in items]
        self.kept["item_id"], self.spare["item_id"] = ids[:2], ids[2:]
        self.kept["conversation"] = [conversation]
        self._several("name", self._make_alias)
        self.kept["model_id"] += self.kept["name"]
        self._several("key_id", lambda n: str(self._post("/admin/keys", {"name": f"k{n}"})["id"]))
        self.kept["dataset_id"] = [self._post("/v1/datasets", {"name": "set"})["id"]]

    def _make_alias(self, number: int) -> str:
        name = f"alias-{number}"
        self._post("/admin/aliases", {"name": name, "target": MODEL})
        return name

    def _make_jobs(self) -> None:
        wanted = {"model": MODEL, "training_file": self.kept["file_id"][0]}
        job = self._post("/v1/fine_tuning/jobs", wanted)["id"]
        # The events of one that runs would be streamed until it ends.
        self._post(f"/v1/fine_tuning/jobs/{job}/cancel")
        self.kept["job_id"] = [job]

    def _make_evals(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        grader = {
            "type": "string_check", "name": "g", "operation": "eq", "input": "{{ item.a }}",
            "reference": "x",
        }  # fmt: skip
        config = {"type": "custom", "item_schema": schema}
        body = {"data_source_config": config, "testing_criteria": [grader]}
        rows = [{"item": {"a": letter}} for letter in "xy"]
        source = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
        self._several("eval_id", lambda _: str(self._post("/v1/evals", body)["id"]))
        path = f"/v1/evals/{self.kept['eval_id'][0]}/runs"
        self._several("run_id", lambda _: str(self._post(path, {"data_source": source})["id"]))
        (run,) = self.kept["run_id"]
        while not (items := self._client.get(f"{path}/{run}/output_items").json()["data"]):
            time.sleep(0.1)
        self.kept["output_item_id"] = [item["id"] for item in items]
        self.kept["baseline"] = self.kept["run_id"]
        self.kept["candidate"] = self.spare["run_id"][:1]


def narrowed(url: str) -> dict[str, Any]:
    """The server's document, in which every second name leads to something that is there."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        objects = Objects(client)
        document: dict[str, Any] = client.get("/openapi.json").raise_for_status().json()
    for item in document["paths"].values():
        for method, operation in item.items():
            known = objects.kept | (objects.spare if method == "delete" else {})
            if method == "delete":
                # What others need stays: an item goes, and its conversation with the next ones.
                nested = len(operation.get("parameters", ())) > 1
                known |= {k: objects.kept[k] for k in ("conversation_id", "eval_id") if nested}
            for parameter in operation.get("parameters", ()):
                if (names := known.get(parameter["name"])) is not None:
                    parameter["schema"] = {"anyOf": [{"enum": names}, parameter["schema"]]}
    for schema in document["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name == "model" and "object" not in schema["properties"]:
                optional = "model" not in schema.get("required", ())
                field |= {"enum": [MODEL, *([None] if optional else [])]}
            elif name in objects.kept and name != "name":
                copy = {**field}
                field.clear()
                field["anyOf"] = [{"enum": objects.kept[name]}, copy]
    return document


def run(environment: Path, url: str, folder: Path, seconds: int, rate: str) -> int:
    """Schemathesis' exit status; its report lies in `folder`."""
    document = folder / "openapi.json"
    document.write_text(json.dumps(narrowed(url)), encoding="utf-8")
    (folder / "schemathesis.toml").write_text(CONFIGURATION, encoding="utf-8")
    command = [
        environment / "bin/schemathesis", "run", document, "--url", url,
        "--header", f"Authorization:Bearer {ADMIN_KEY}", "--max-time", str(seconds),
        "--rate-limit", rate, "--request-timeout", "30", "--exclude-checks",
        "positive_data_acceptance", "--continue-on-failure", "--max-examples", "100000",
        "--generation-database", "none", "--report", "json", "--report-json-path",
        folder / "report.json", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, check=False).returncode


def main() -> None:
    """Start, test, count, end. The exit status is schemathesis'."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--rate", default="100/s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, url = start(folder)
        try:
            status = run(options.environment.resolve(), url, folder, options.seconds, options.rate)
            metrics = httpx.get(f"{url}/metrics").text
            for line in metrics.splitlines():
                if 'status="5' in line or line.startswith("hagane_engine_restarts"):
                    print(line)
        finally:
            process.terminate()
            process.wait()
        print((folder / "log").read_text()[-3000:])
    raise SystemExit(status)


if __name__ == "__main__":
    main()
