"""A function-calling score of a running server: BFCL's simple and multiple sets.

The questions and answers are those of the package `bfcl-eval` (its folder `data`); any server with
OpenAI's chat route can be asked, so that the same weights can be compared in several. A case is
right if the one call has the right name, every value is among those that the set accepts, and
nothing is missing or made up, as the leaderboard's check of syntax trees has it.

Usage: python benchmarks/function_calling.py DATA --url URL --model NAME [--count 50] [--streams 4]
       [--sets simple_python multiple] [--tool-choice auto] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()][:count]


def as_schema(value: Any) -> Any:
    """The set's Python types in JSON schema's words."""
    if isinstance(value, list):
        return [as_schema(part) for part in value]
    if not isinstance(value, dict):
        return value
    made = {key: as_schema(part) for key, part in value.items() if key != "optional"}
    if isinstance(made.get("type"), str):
        made["type"] = TYPES.get(made["type"], made["type"])
    return made


def safe(name: str) -> str:
    """A name as OpenAI's API allows it."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)


def same(value: Any, accepted: Any) -> bool:
    """Whether a value is an accepted one; strings may differ in case, spaces and punctuation."""
    if isinstance(value, str) and isinstance(accepted, str):
        plain = [re.sub(r"[ ,./\-_*^'\"]", "", text).lower() for text in (value, accepted)]
        return plain[0] == plain[1]
    if isinstance(value, dict) and isinstance(accepted, dict):
        return has_right_values(value, accepted)
    if isinstance(value, list) and isinstance(accepted, list):
        pairs = zip(value, accepted, strict=False)
        return len(value) == len(accepted) and all(same(a, b) for a, b in pairs)
    if isinstance(value, bool) or isinstance(accepted, bool):
        return value is accepted
    return value == accepted


def has_right_values(arguments: dict[str, Any], wanted: dict[str, list[Any]]) -> bool:
    if arguments.keys() - wanted.keys():
        return False
    for name, accepted in wanted.items():
        if name not in arguments:
            if "" not in accepted:
                return False
        elif not any(same(arguments[name], one) for one in accepted):
            return False
    return True


def verdict(message: dict[str, Any], truth: dict[str, Any]) -> str:
    calls = message.get("tool_calls") or []
    if len(calls) != 1:
        return "several calls" if calls else "no call"
    ((name, wanted),) = truth.items()
    function = calls[0]["function"]
    if function["name"] != safe(name):
        return "another function"
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return "arguments are no JSON"
    if not isinstance(arguments, dict) or not has_right_values(arguments, wanted):
        return "other arguments"
    return "right"


async def score(options: argparse.Namespace, name: str) -> dict[str, Any]:
    questions = lines(options.data / f"BFCL_v4_{name}.json", options.count)
    truths = {
        case["id"]: case["ground_truth"][0]
        for case in lines(options.data / "possible_answer" / f"BFCL_v4_{name}.json", 10_000)
    }
    counts: Counter[str] = Counter()
    remaining = iter(questions)

    async def ask(client: httpx.AsyncClient) -> None:
        for case in remaining:
            tools = [
                {"type": "function", "function": as_schema(function)}
                for function in case["function"]
            ]
            for tool in tools:
                tool["function"]["name"] = safe(tool["function"]["name"])
            body = {
                "model": options.model,
                "messages": case["question"][0],
                "tools": tools,
                "tool_choice": options.tool_choice,
                "parallel_tool_calls": False,
                "temperature": 0,
                "max_tokens": 256,
            }
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code == 200:
                counts[verdict(response.json()["choices"][0]["message"], truths[case["id"]])] += 1
            else:
                counts[f"status {response.status_code}"] += 1

    start = time.perf_counter()
    async with httpx.AsyncClient(base_url=options.url, timeout=600) as client:
        await asyncio.gather(*(ask(client) for _ in range(options.streams)))
    right = round(100 * counts["right"] / len(questions), 1)
    seconds = round(time.perf_counter() - start)
    return {"cases": len(questions), "right_percent": right, "seconds": seconds, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sets", nargs="+", default=["simple_python", "multiple"])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tool-choice", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {name: asyncio.run(score(options, name)) for name in options.sets}
    print(json.dumps(results, indent=2))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
