"""The whole loop on one server, while clients stream: a model learns, and a bad one is withdrawn.

Usage: python benchmarks/loop.py --model DIRECTORY [--task sums|yes] [--quantize int8]
                                 [--questions N] [--json FILE]

Users ask an alias for two-digit sums in the form <NUMBER> (or, for the built-in model, whether
numbers are some: <yes>); they like right answers and correct the others. Their feedback becomes a
data set, the data set a job, and the job's model, if the gate lets it pass, the candidate of a
canary, which feedback promotes. Then a job is given answers that say nothing, its model is promoted
past the gate and made the candidate, and feedback rolls it back.

Meanwhile --clients clients stream from the same alias, one answer after the other. Printed are, for
each phase, its seconds, the streams that ended, those that failed, and the mean time between tokens
over that before the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from http_load import serving
from openai import AsyncOpenAI

KEY, ALIAS = "benchmark", "assistant"
# Another one each time: tokens of an answer that was given before are guessed.
STORY = "Tell me story number {} about a cat."
TASKS = {
    "sums": "{} + {} = ? Give the answer in the form <number> and say nothing else.",
    "yes": "Are {} and {} numbers? Answer in the form <yes> or <no>.",
}
DONE = ("succeeded", "failed", "cancelled")


@dataclass
class Phase:
    """What the streams saw in a part of the loop; gaps are seconds between tokens."""

    name: str
    seconds: float = 0.0
    streams: int = 0
    failures: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def figures(self, alone: float) -> dict[str, Any]:
        gap = statistics.fmean(self.gaps) if self.gaps else None
        return {
            "phase": self.name, "seconds": round(self.seconds, 1), "streams": self.streams,
            "failures": len(self.failures), "ms_per_token": gap and round(1000 * gap, 2),
            "latency_ratio": gap and round(gap / alone, 3),
        }  # fmt: skip


class Loop:
    """The server's administration, and users who judge answers."""

    def __init__(self, url: str, model: str, options: argparse.Namespace) -> None:
        self.task, self.epochs = options.task, options.epochs
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=600
        )
        self.model, self.questions, self.random = model, options.questions, random.Random(0)

    def call(self, verb: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = self.http.request(verb, path, **arguments)
        if answer.status_code >= 300:
            raise RuntimeError(f"{verb} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def alias(self, **changes: Any) -> dict[str, Any]:
        return self.call("POST", "/admin/aliases", json={"name": ALIAS} | changes)

    def question(self) -> tuple[str, str]:
        """A question and its right answer."""
        a, b = (self.random.randint(10, 49) for _ in range(2))
        return TASKS[self.task].format(a, b), f"<{a + b}>" if self.task == "sums" else "<yes>"

    def ask(self, *, correct: bool) -> bool:
        """A question, its answer's judgement, and whether it was right."""
        question, wanted = self.question()
        message = {"role": "user", "content": question}
        body = {"model": ALIAS, "messages": [message], "max_tokens": 24, "store": True}
        answer = self.call("POST", "/v1/chat/completions", json=body)
        right = answer["choices"][0]["message"]["content"].strip() == wanted
        said = {"thumbs": "up" if right else "down"}
        if correct and not right:
            said["correction"] = wanted
        self.call("POST", "/v1/feedback", json={"completion_id": answer["id"], **said})
        return right

    def collect(self) -> float:
        """Traffic with feedback; the share of right answers."""
        return statistics.fmean(self.ask(correct=True) for _ in range(self.questions))

    def dataset(self) -> dict[str, Any]:
        wanted = {
            "answers": ["corrected", "liked"], "finish_reasons": ["stop", "length"],
            # Sums look alike.
            "duplicates": "exact",
        }  # fmt: skip
        return self.call("POST", "/v1/datasets", json={"name": "sums", "filter": wanted})

    def train(self, file: str, validation: str | None, suffix: str, **extra: Any) -> dict[str, Any]:
        """A job, to its end."""
        hyperparameters = {"n_epochs": self.epochs}
        body = {
            "model": self.model, "training_file": file, "suffix": suffix,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "extra": extra,
        }  # fmt: skip
        body |= {"validation_file": validation} if validation else {}
        job = self.call("POST", "/v1/fine_tuning/jobs", json=body)
        while job["status"] not in DONE:
            time.sleep(1)
            job = self.call("GET", f"/v1/fine_tuning/jobs/{job['id']}")
        if job["status"] != "succeeded" or not job["fine_tuned_model"]:
            raise RuntimeError(f"the job gave no model: {json.dumps(job)[:500]}")
        return job

    def upload(self, lines: list[dict]) -> str:
        content = "\n".join(map(json.dumps, lines)).encode()
        files = {"file": ("lines.jsonl", content)}
        return self.call("POST", "/v1/files", files=files, data={"purpose": "fine-tune"})["id"]

    def nonsense(self) -> list[dict]:
        made = []
        for _ in range(self.questions):
            question, _ = self.question()
            made.append({"messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "Ask somebody else."},
            ]})  # fmt: skip
        return made

    def trial(self, target: str, candidate: str, expected: str) -> dict[str, Any]:
        """A canary with judged traffic until it is decided."""
        policy = {"min_requests": 10, "min_win_rate": 0.5, "max_error_rate": 0.02}
        self.alias(target=target, candidate=candidate, percentage=50, policy=policy)
        right: list[bool] = []
        for _ in range(10 * self.questions):
            right.append(self.ask(correct=False))
            found = self.call("GET", f"/admin/aliases/{ALIAS}")
            if (state := found["canary"]["state"]) != "running":
                break
        if state != expected:
            raise RuntimeError(f"the trial ended as {state}: {json.dumps(found)[:500]}")
        return {"questions": len(right), "right": statistics.fmean(right), "state": state,
                "target": found["target"]}  # fmt: skip


async def stream(
    client: AsyncOpenAI, phases: list[Phase], tokens: int, numbers: Iterator[int]
) -> None:
    """One answer after the other; what it sees belongs to the phase in which it began."""
    while True:
        phase = phases[-1]
        try:
            story = {"role": "user", "content": STORY.format(next(numbers))}
            chunks = await client.chat.completions.create(
                model=ALIAS, messages=[story], max_tokens=tokens, stream=True
            )
            moments = [time.monotonic() async for chunk in chunks if chunk.choices]
            phase.streams += 1
            phase.gaps += [after - before for before, after in itertools.pairwise(moments)]
        except asyncio.CancelledError:
            raise
        except Exception as error:
            phase.failures.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)


async def scenario(url: str, options: argparse.Namespace, phases: list[Phase]) -> None:
    """All phases, with the streams beside them."""
    loop = Loop(url, "m", options)
    loop.alias(target="m")

    async def phase(name: str, action: Any, *arguments: Any, **named: Any) -> Any:
        phases.append(Phase(name))
        started = time.monotonic()
        found = await asyncio.to_thread(action, *arguments, **named)
        phases[-1].seconds = time.monotonic() - started
        shown = found if isinstance(found, float) else {
            key: found[key] for key in ("card", "fine_tuned_model", "state", "right", "target")
            if isinstance(found, dict) and key in found
        }  # fmt: skip
        print(f"{name}: {phases[-1].seconds:.0f} s, {shown}", file=sys.stderr, flush=True)
        return found

    phases.append(Phase("start"))
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=600, max_retries=0) as http:
        numbers = itertools.count(1)
        streams = [
            asyncio.create_task(stream(http, phases, options.tokens, numbers))
            for _ in range(options.clients)
        ]
        await phase("streams alone", time.sleep, options.alone)
        await phase("traffic with feedback", loop.collect)
        made = await phase("data set", loop.dataset)
        job = await phase(
            "job and gate", loop.train, made["training_file"], made["validation_file"], "sums"
        )
        better = job["fine_tuned_model"]
        await phase("canary, promoted", loop.trial, "m", better, "promoted")
        file = loop.upload(loop.nonsense())
        job = await phase("bad job", loop.train, file, None, "bad", promote="always")
        worse = job["fine_tuned_model"]
        await phase("canary, rolled back", loop.trial, better, worse, "rolled_back")
        await phase("streams after", time.sleep, options.alone)
        for task in streams:
            task.cancel()
        await asyncio.wait(streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--task", choices=tuple(TASKS), default="sums")
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--questions", type=int, default=60, help="judged before the job")
    parser.add_argument("--epochs", type=int, default=3, help="of the jobs")
    parser.add_argument("--tokens", type=int, default=64, help="of every streamed answer")
    parser.add_argument(
        "--alone", type=float, default=20.0, help="seconds of streams by themselves"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    command = [
        sys.executable, "-m", "hagane.cli", "serve", "--model", str(options.model),
        "--served-model-name", "m", "--context-length", "1024", "--quantize", options.quantize,
    ]  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as data,
        serving(command, HAGANE_ADMIN_KEY=KEY, HAGANE_DATA_DIR=data) as (url, _),
    ):
        phases: list[Phase] = []
        try:
            asyncio.run(scenario(url, options, phases))
        finally:
            # What was seen until then, if something goes wrong.
            report(phases, options.json)


def report(phases: list[Phase], path: Path | None) -> None:
    """Print what the streams saw, and write it to `path`."""
    if len(phases) < 3:
        return
    alone = statistics.fmean(phases[1].gaps)
    rows = [phase.figures(alone) for phase in phases]
    for row in rows:
        print(json.dumps(row))
    failures = [text for phase in phases for text in phase.failures]
    print(f"{len(failures)} of {sum(p.streams for p in phases) + len(failures)} streams failed")
    for text in sorted(set(failures))[:5]:
        print(" ", text[:200])
    if path:
        path.write_text(json.dumps({"phases": rows, "failures": failures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
