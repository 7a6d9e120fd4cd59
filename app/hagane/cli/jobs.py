"""`hagane jobs`: the training jobs of a running server."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.cli.server_client import ServerClient
from hagane.system.settings import PREFIX

_FINE_TUNING = "/v1/fine_tuning/jobs"
_PRETRAINING = "/admin/pretraining/jobs"


class JobsOptions(Options):
    """List, watch and steer the training jobs of a running server."""

    action: CliPositionalArg[Literal["list", "show", "watch", "cancel", "pause", "resume"]] = Field(
        description="list; or, of one job: show, watch, cancel, pause, resume"
    )
    job: CliPositionalArg[str | None] = Field(None, description="the job's id")
    url: str = Field("http://127.0.0.1:8000", description="the server's address")
    admin_key: str | None = Field(
        None, description=f"the server's admin key; default: {PREFIX}ADMIN_KEY"
    )
    limit: int = Field(20, ge=1, le=10_000, description="of list: the newest of each kind")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.job is None) != (self.action == "list"):
            raise ValueError("show, watch, cancel, pause and resume take a job's id; list none")
        return self


def run(arguments: list[str]) -> int:
    """Run the command; 1 when a job that was watched did not succeed."""
    options = read(JobsOptions, arguments, "jobs")
    key = options.admin_key
    if key is None:
        key = os.environ.get(f"{PREFIX}ADMIN_KEY", "")
    client = ServerClient(options.url, key)
    if options.job is None:
        _list(client, options.limit)
        return 0
    # Jobs of both kinds answer here.
    path = f"{_FINE_TUNING}/{options.job}"
    if options.action == "watch":
        return _watch(client, path)
    if options.action == "show":
        print(json.dumps(client.get(path), indent=2, ensure_ascii=False))
        return 0
    print(_line(client.post(f"{path}/{options.action}")))
    return 0


def _list(client: ServerClient, limit: int) -> None:
    jobs = [
        job
        for path in (_FINE_TUNING, _PRETRAINING)
        for job in client.get(path, limit=limit)["data"]
    ]
    for job in sorted(jobs, key=lambda job: -job["created_at"]):
        print(_line(job))
    if not jobs:
        print("no jobs yet")


def _line(job: dict[str, Any]) -> str:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))
    result = job.get("fine_tuned_model") or job["model"]
    return f"{job['id']}  {started}  {job['status']:16}  {result}"


def _watch(client: ServerClient, path: str) -> int:
    """Print the events from the first one until the job has ended."""
    for event in client.events("GET", f"{path}/events", stream="true"):
        clock = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
        print(f"{clock}  {event['message']}", flush=True)
    job = client.get(path)
    print(_line(job))
    if job["error"]:
        print(job["error"]["message"])
    return 0 if job["status"] == "succeeded" else 1
