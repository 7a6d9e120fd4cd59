"""Long contexts: needles found, the loss at the end of a text, and speed, by the KV cache's dtype.

Usage: python benchmarks/long_context.py MODEL FILE... [--quantize int8] [--kv model int8]
                                         [--lengths 2048 8192 32768] [--needles 5] [--json FILE]

The tokens of the FILEs are strung together to one text. `needles`: one of them tells a number
somewhere in the text, and the model is asked for it. `loss`: nats of each of the last 256 tokens of
the text, given all before them. `prefill`: prompt tokens per second of a fresh prompt; `decode`:
tokens per second after the first one, at that length.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import tokenizers
from http_load import serving

LAST, NEW = 256, 33
QUESTION = "\n# The secret number of {name} in the text above is "
NEEDLE = "\n# Remember: the secret number of {name} is {number}.\n"
NAMES = ("Kyoto", "Sapporo", "Nagoya", "Kobe", "Sendai", "Hiroshima", "Nara", "Fukuoka")


def read(tokenizer: tokenizers.Tokenizer, files: list[Path], count: int) -> list[int]:
    ids: list[int] = []
    for path in files:
        ids += tokenizer.encode(path.read_text(errors="replace")).ids
        if len(ids) >= count:
            return ids[:count]
    raise SystemExit(f"the text has {len(ids)} tokens, of which {count} are needed")


class Server:
    """A server's answers to token ids."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=3600)

    def complete(self, prompt: list[int], **more: Any) -> dict[str, Any]:
        body = {"model": "m", "prompt": prompt, "temperature": 0, **more}
        answer = self.http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise SystemExit(answer.text)
        found: dict[str, Any] = answer.json()
        return found

    def speed(self, prompt: list[int]) -> tuple[float, float]:
        """Tokens per second of the prompt, and of the answer after its first token."""
        body = {"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": NEW,
                "ignore_eos": True, "stream": True, "speculation": "off"}  # fmt: skip
        start = time.perf_counter()
        with self.http.stream("POST", "/v1/completions", json=body) as answer:
            moments = [
                time.perf_counter() - start
                for line in answer.iter_lines()
                if line.startswith("data: {")
            ]
        return len(prompt) / moments[0], (NEW - 1) / (moments[-1] - moments[0])

    def loss(self, text: list[int]) -> float:
        answer = self.complete(text, echo=True, logprobs=0, max_tokens=0)
        return -statistics.fmean(answer["choices"][0]["logprobs"]["token_logprobs"][-LAST:])


def needles(
    server: Server, tokenizer: tokenizers.Tokenizer, text: list[int], count: int
) -> tuple[int, int]:
    """How many numbers were told, out of how many."""
    rng, found = random.Random(1), 0
    for place in range(count):
        name, number = NAMES[place % len(NAMES)], str(rng.randrange(10_000, 100_000))
        at = len(text) * (2 * place + 1) // (2 * count)
        hidden = tokenizer.encode(NEEDLE.format(name=name, number=number)).ids
        question = tokenizer.encode(QUESTION.format(name=name)).ids
        prompt = (text[:at] + hidden + text[at:])[: len(text) - len(question)] + question
        answer = server.complete(prompt, max_tokens=8)["choices"][0]["text"]
        found += number in answer
    return found, count


def measure(options: argparse.Namespace, kind: str) -> list[dict[str, Any]]:
    tokenizer = tokenizers.Tokenizer.from_file(str(options.model / "tokenizer.json"))
    longest = max(options.lengths)
    text = read(tokenizer, options.files, longest)
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(options.model)]
    command += ["--served-model-name", "m", "--context-length", str(longest + 64)]
    command += ["--quantize", options.quantize, "--kv-cache-dtype", kind]
    rows = []
    with serving(command) as (url, _):
        server = Server(url)
        for length in options.lengths:
            part = text[:length]
            told, asked = needles(server, tokenizer, part, options.needles)
            # Nothing that a prefix cache knows.
            fresh = part[::-1]
            prefill, decode = server.speed(fresh)
            row = {"kv": kind, "length": length, "told": told, "asked": asked,
                   "loss": server.loss(part), "prefill": prefill, "decode": decode}  # fmt: skip
            rows.append(row)
            print(f"| {kind} | {length} | {told} of {asked} | {row['loss']:.4f} | "
                  f"{prefill:.0f} | {decode:.1f} |", flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--kv", nargs="+", default=["model", "int8"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 8192, 32_768])
    parser.add_argument("--needles", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| KV cache | tokens | needles told | loss at the end | prefill | decode |")
    print("|---" * 6 + "|")
    rows = [row for kind in options.kv for row in measure(options, kind)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
