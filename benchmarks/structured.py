"""Tokens per second of answers that are held to a grammar, against free ones, over HTTP.

Forced tokens of JSON need no forward pass each, so that schemas with long keys are faster than free
text; a regular expression that forces nothing shows what masks cost. Rounds alternate between the
forms; figures are medians, percentages those of the rounds' own: the machine's speed drifts.

Usage: python benchmarks/structured.py [--model MODEL] [--quantize int8] [--streams 1 16]
       [--tokens 96] [--rounds 3] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from operator import truediv
from pathlib import Path
from typing import Any

import httpx
from hagane.text.hub import resolve_model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.server import start_server, stop_server  # noqa: E402

KEYS = ("customer_identification_number", "shipping_address_is_residential",
        "estimated_delivery_days_from_today", "requires_signature_on_delivery",
        "total_weight_of_all_parcels_in_grams", "contains_hazardous_materials",
        "number_of_parcels_in_this_shipment", "insurance_was_requested_by_sender")  # fmt: skip
LONG_KEYS = {
    "type": "object",
    "properties": {
        key: {"type": "boolean"} if number % 2 else {"type": "integer", "maximum": 999}
        for number, key in enumerate(KEYS)
    },
    "required": list(KEYS),
    "additionalProperties": False,
}
SHORT_KEYS = {
    "type": "array",
    "minItems": 60,
    "items": {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 12}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
FORMS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "schema, long keys": {"structured_outputs": {"json": LONG_KEYS}},
    "schema, short keys": {"structured_outputs": {"json": SHORT_KEYS}},
    "regular expression": {"structured_outputs": {"regex": "[a-z ,.]{2000}"}},
    "GBNF": {"grammar": 'root ::= (word " "){500}\nword ::= [a-zA-Z]+'},
}


async def speed(url: str, form: dict[str, Any], streams: int, tokens: int, seed: int) -> float:
    """Tokens per second of so many equal requests at a time."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(number: int) -> int:
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": "Describe a parcel."}],
                "max_tokens": tokens,
                "temperature": 0.7,
                "seed": 100 * seed + number,
                "speculation": "off",
                **form,
            }
            response = await client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            return response.json()["usage"]["completion_tokens"]

        start = time.perf_counter()
        counts = await asyncio.gather(*(ask(number) for number in range(streams)))
        return sum(counts) / (time.perf_counter() - start)


def measure(url: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for streams in options.streams:
        rates: dict[str, list[float]] = {name: [] for name in FORMS}
        for seed in range(options.rounds + 1):
            for name, form in FORMS.items():
                rate = asyncio.run(speed(url, form, streams, options.tokens, seed))
                if seed:  # the first round warms up
                    rates[name].append(rate)
        found[str(streams)] = {
            name: {
                "tokens_per_s": round(statistics.median(values), 1),
                "percent": round(100 * statistics.median(map(truediv, values, rates["free"]))),
            }
            for name, values in rates.items()
        }
        print(streams, json.dumps(found[str(streams)], indent=2), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hagane-mini")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--quantize", options.quantize, "--served-model-name", "m"]
        flags += ["--threads", str(options.threads)]
        server = start_server(resolve_model(options.model), Path(folder) / "log", *flags)
        try:
            server.wait_ready(300)
            found = measure(server.url, options)
        finally:
            stop_server(server)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
