"""Check by schemathesis that a real server keeps its own openapi.json.

Bounded in time and in requests a second. Schemathesis lives in an environment of its own:
    python -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install schemathesis

Usage: python benchmarks/api_contract.py ENVIRONMENT [--seconds 600] [--rate 100/s]

Every check but one runs. `positive_data_acceptance` cannot hold: what a schema cannot say (a file
that exists, a prompt that fits) is refused with 400 or 409 all the same. In the document that is
tested against, names are those of things that are there, so that requests reach them.
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
from pathlib import Path
from typing import Any

import httpx

MODEL, ADMIN_KEY = "hagane-mini", "admin-key"
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


def make_objects(client: httpx.Client) -> dict[str, list[str]]:
    """One or two of each kind, by the path parameter that names such."""
    line = {"messages": [{"role": role, "content": "Hi"} for role in ("user", "assistant")]}
    example = (json.dumps(line) + "\n").encode() * 20
    form = {"files": {"file": ("a.jsonl", example)}, "data": {"purpose": "fine-tune"}}
    file = client.post("/v1/files", **form).raise_for_status().json()["id"]
    names = ["fast", "slow"]
    for name in names:
        client.post("/admin/aliases", json={"name": name, "target": MODEL}).raise_for_status()
    wanted = {"model": MODEL, "training_file": file}
    job = client.post("/v1/fine_tuning/jobs", json=wanted).raise_for_status().json()["id"]
    client.post(f"/v1/fine_tuning/jobs/{job}/cancel").raise_for_status()
    asked = {"model": MODEL, "input": "Hi", "max_output_tokens": 4}
    response = client.post("/v1/responses", json=asked).raise_for_status().json()["id"]
    conversation = client.post("/v1/conversations", json={}).raise_for_status().json()["id"]
    return {
        "file_id": [file], "name": names, "job_id": [job], "model_id": [MODEL, "fast"],
        "response_id": [response], "conversation_id": [conversation],
    }  # fmt: skip


def narrowed(url: str) -> dict[str, Any]:
    """The server's document, with names that lead to something."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=url, headers=headers) as client:
        objects = make_objects(client)
        document: dict[str, Any] = client.get("/openapi.json").raise_for_status().json()
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                # Of other kinds there is nothing yet: any name is as good.
                known = objects.get(parameter["name"])
                if parameter["in"] == "path" and known is not None:
                    parameter["schema"] |= {"enum": known}
    for schema in document["components"]["schemas"].values():
        if (timeout := schema.get("properties", {}).get("timeout")) is not None:
            # A deadline that passes is 504, as asked for.
            timeout |= {"enum": [60, None]}
        if "model" in schema.get("properties", {}):
            known = schema["properties"]["model"]
            optional = "model" not in schema.get("required", ())
            known |= {"enum": [MODEL, *([None] if optional else [])]}
    return document


def run(environment: Path, url: str, folder: Path, seconds: int, rate: str) -> int:
    """Schemathesis' exit status; its report lies in `folder`."""
    document = folder / "openapi.json"
    document.write_text(json.dumps(narrowed(url)), encoding="utf-8")
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
