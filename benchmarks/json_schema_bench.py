"""JSONSchemaBench: which of its schemas compile, and whether answers held to them validate.

The schemas are those of https://github.com/guidance-ai/jsonschemabench (its folder `data`). All of
the sets are compiled as a server compiles them; then a server is started, and answers to `--count`
schemas of each set, evenly spread, are validated with `jsonschema`.

Usage: python benchmarks/json_schema_bench.py DATA [--model NAME] [--quantize int8] [--count 50]
       [--sets Github_easy Github_medium] [--most-tokens 300] [--temperature 0.8] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import jsonschema
from hagane.generation import grammars
from hagane.system.errors import InvalidRequestError
from hagane.text.hub import resolve_model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.server import start_server, stop_server  # noqa: E402

SLOW = 1.0  # seconds, of compiling
STREAMS = 8
Schemas = dict[str, dict[str, Any]]


def compile_set(checker: grammars.GrammarChecker, schemas: Schemas) -> dict[str, Any]:
    """How many are enforced, why others are not, and how long it takes."""
    refused: Counter[str] = Counter()
    seconds = {}
    for name, schema in schemas.items():
        start = time.perf_counter()
        try:
            checker.check(grammars.from_json_schema(schema, "schema"))
        except InvalidRequestError as error:
            refused[str(error).splitlines()[0][:100]] += 1
        seconds[name] = time.perf_counter() - start
    enforced = len(schemas) - refused.total()
    return {
        "schemas": len(schemas),
        "enforced": enforced,
        "percent": round(100 * enforced / len(schemas), 2),
        "longest_s": round(max(seconds.values()), 3),
        "slow": sum(value > SLOW for value in seconds.values()),
        "refused": dict(refused.most_common(20)),
    }


def is_valid(schema: dict[str, Any], text: str) -> bool:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return kind(schema).is_valid(json.loads(text))


async def answers(url: str, schemas: Schemas, options: argparse.Namespace) -> dict[str, Any]:
    """Ask for an object of each schema, and validate what is finished."""
    counts: Counter[str] = Counter()
    remaining = iter(schemas.items())

    async def ask(client: httpx.AsyncClient) -> None:
        for name, schema in remaining:
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": "Write a short example as JSON."}],
                "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
                "max_tokens": options.most_tokens,
                "temperature": options.temperature,
                "seed": 0,
            }
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code != 200:
                counts["refused" if response.status_code == 400 else "failed"] += 1
                continue
            choice = response.json()["choices"][0]
            if choice["finish_reason"] != "stop":
                counts["unfinished"] += 1
                continue
            valid = is_valid(schema, choice["message"]["content"])
            counts["valid" if valid else "invalid"] += 1
            if not valid:
                print(f"INVALID {name}: {choice['message']['content'][:300]}", file=sys.stderr)

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*(ask(client) for _ in range(STREAMS)))
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=["Github_easy", "Github_medium"])
    parser.add_argument("--model", default="hagane-mini")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--most-tokens", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = resolve_model(options.model)
    checker = grammars.GrammarChecker(model)
    checker.prepare()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--quantize", options.quantize, "--served-model-name", "m"]
        server = start_server(model, Path(folder) / "log", *flags)
        try:
            server.wait_ready(300)
            for name in options.sets:
                paths = sorted((options.data / name).glob("*.json"))
                schemas = {path.name: json.loads(path.read_text()) for path in paths}
                results[name] = compile_set(checker, schemas)
                step = max(1, len(paths) // max(1, options.count))
                chosen = dict(list(schemas.items())[::step][: options.count])
                results[name]["answers"] = asyncio.run(answers(server.url, chosen, options))
                print(name, json.dumps(results[name], indent=2), flush=True)
        finally:
            stop_server(server)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
