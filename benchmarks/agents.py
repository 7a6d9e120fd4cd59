"""Agents that call tools, over HTTP, beside llama.cpp's own server with the same GGUF file.

Usage: python benchmarks/agents.py MODEL.gguf [--llama SERVER] [--agents 1 4] [--turns 8]
                                   [--rounds 1] [--json FILE] [FLAG=VALUE ...]

Every agent has a system prompt, two tools and a task. In each turn it has to call a tool
(`tool_choice: required`), gets some hundred words as the result, and is asked again: a prompt that
grows, of which all but the end is known to the server's prefix cache. Stated are the median times
to a call's first token and to its end, and how long all turns of all agents took. Servers
alternate; FLAG=VALUE are settings of Hagane. --llama is `llama-server`, built for this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from hagane.system.machine import usable_cores
from http_load import serving

TOKENS = 96  # of a call, at most
CONTEXT = 8192
WORDS = [
    "river", "stone", "lamp", "harbour", "copper", "window", "engine", "letter", "garden",
    "winter", "bridge", "signal", "carpet", "morning", "paper", "violin", "market", "anchor",
]  # fmt: skip
RESULT_WORDS = 150


@dataclass
class Turns:
    """Seconds, one of each kind for a turn, and the tokens that were written."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0


def tool(name: str, about: str, argument: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": schema},
    }


TOOLS = [
    tool("read_file", "Read a file of the project", "path"),
    tool("search", "Find words in the project's files", "query"),
]


def words(seed: str, count: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


async def turn(http: httpx.AsyncClient, messages: list[dict[str, Any]], seen: Turns) -> None:
    """Ask for a call, and append it with its result to the messages."""
    body = {
        "model": "m", "messages": messages, "tools": TOOLS, "tool_choice": "required",
        "parallel_tool_calls": False, "temperature": 0, "max_tokens": TOKENS, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    start, first, arguments, name = time.perf_counter(), 0.0, "", ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError((await answer.aread()).decode()[:300])
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            seen.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
            for choice in event["choices"]:
                delta = choice["delta"]
                if not first and (delta.get("content") or delta.get("tool_calls")):
                    first = time.perf_counter() - start
                for call in delta.get("tool_calls") or []:
                    name += call["function"].get("name") or ""
                    arguments += call["function"].get("arguments") or ""
    whole = time.perf_counter() - start
    seen.first.append(first or whole)
    seen.whole.append(whole)
    number = len(messages)
    call = {"id": f"call{number:05d}", "type": "function"}
    # A call that was cut off has no arguments that a template could show.
    given = arguments if arguments.endswith("}") else "{}"
    call["function"] = {"name": name or "search", "arguments": given}
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    result = f"{number}: {words(f'result {number}', RESULT_WORDS)}"
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


async def work(url: str, agents: int, turns: int, seed: str) -> tuple[Turns, float]:
    """What all turns of all agents took, and the seconds in total."""
    seen = Turns()
    async with httpx.AsyncClient(base_url=url, timeout=1800) as http:

        async def one(agent: int) -> None:
            messages: list[dict[str, Any]] = [
                {"role": "system", "content": f"You look after a project. {words(seed, 400)}"},
                {"role": "user", "content": f"Find the file about {words(f'{seed}{agent}', 3)}."},
            ]
            for _ in range(turns):
                await turn(http, messages, seen)

        start = time.perf_counter()
        await asyncio.gather(*(one(agent) for agent in range(agents)))
    return seen, time.perf_counter() - start


def servers(options: argparse.Namespace) -> dict[str, list[str]]:
    most = max(options.agents)
    ours = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(options.model)]
    ours += ["--served-model-name", "m", "--context-length", str(CONTEXT)]
    for setting in options.settings:
        name, _, value = setting.partition("=")
        ours += [f"--{name.replace('_', '-')}", value]
    found = {"Hagane": ours}
    if options.llama:
        found["llama.cpp"] = [
            options.llama, "--model", str(options.model), "--alias", "m", "--jinja",
            "--parallel", str(most), "--ctx-size", str(CONTEXT * most),
            "--threads", str(len(usable_cores())),
        ]  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("settings", nargs="*", metavar="FLAG=VALUE")
    parser.add_argument("--llama")
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(
        "| server | agents | first token | whole call | all turns | tokens |\n" + "|---" * 6 + "|"
    )
    for number in range(options.rounds):
        for name, command in servers(options).items():
            with serving(command) as (url, _):
                asyncio.run(work(url, 1, 1, "warm"))
                for agents in options.agents:
                    seen, seconds = asyncio.run(work(url, agents, options.turns, f"r{number}"))
                    first, whole = statistics.median(seen.first), statistics.median(seen.whole)
                    rows.append({"server": name, "agents": agents, "first": first, "whole": whole,
                                 "seconds": seconds, "tokens": seen.tokens})  # fmt: skip
                    print(f"| {name} | {agents} | {1000 * first:.0f} ms | {whole:.2f} s | "
                          f"{seconds:.1f} s | {seen.tokens} |", flush=True)  # fmt: skip
    for agents in options.agents if options.llama else ():
        taken = {
            name: statistics.median(
                row["seconds"] for row in rows if row["server"] == name and row["agents"] == agents
            )
            for name in ("Hagane", "llama.cpp")
        }
        ratio = taken["llama.cpp"] / taken["Hagane"]
        print(f"{agents} agents: all turns x{ratio:.2f} as fast as llama.cpp")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
