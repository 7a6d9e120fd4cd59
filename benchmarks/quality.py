"""Bits per byte of a text by quantization and KV cache, beside llama.cpp with the same weights.

Usage: python benchmarks/quality.py MODEL TEXT [--llama PYTHON] [--windows N]

TEXT is plain text or JSON Lines with `text` or `messages`. Windows of 256 tokens are scored through
the HTTP API (`echo` with `logprobs`), each token but the first; lower is better.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import tokenizers
from hagane.data.documents import Corpus, documents

HERE = Path(__file__).resolve().parent
WINDOW = 256


def windows(model: Path, text: Path, count: int) -> tuple[list[list[int]], int]:
    """Token ids of each window, and the bytes that the scored tokens stand for."""
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    ids: list[int] = []
    for document in documents(Corpus(path=text)):
        ids += tokenizer.encode(document).ids
        if len(ids) >= count * WINDOW:
            break
    cut = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)][:count]
    size = sum(
        len(tokenizer.decode(part, skip_special_tokens=False).encode())
        - len(tokenizer.decode(part[:1], skip_special_tokens=False).encode())
        for part in cut
    )
    return cut, size


def hagane(model: Path, quantize: str, kept: str, parts: list[list[int]]) -> float:
    """Nats of all windows through a server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(model),
               "--port", str(port),
               "--served-model-name", "m", "--quantize", quantize,
               "--kv-cache-dtype", kept]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        total = 0.0
        for part in parts:
            body = {"model": "m", "prompt": part, "echo": True, "logprobs": 0, "max_tokens": 0}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=600)
            answer.raise_for_status()
            total -= sum(answer.json()["choices"][0]["logprobs"]["token_logprobs"][1:])
        server.terminate()
    return total


def llama(python: str, model: Path, kind: str, parts: list[list[int]]) -> float:
    target, plan = model / f".{kind}.gguf", model / ".windows.json"
    plan.write_text(json.dumps(parts))
    script = [python, str(HERE / "peer_llama.py")]
    subprocess.run([*script, "--convert", str(model), str(target), kind], check=True)
    done = subprocess.run(
        [*script, "--score", str(target), str(plan)], check=True, capture_output=True, text=True
    )
    target.unlink()
    plan.unlink()
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--windows", type=int, default=100)
    options = parser.parse_args()
    parts, size = windows(options.model, options.text, options.windows)
    scores = {
        f"Hagane {quantize}{', KV cache int8' if kept == 'int8' else ''}": hagane(
            options.model, quantize, kept, parts
        )
        for quantize in ("none", "int8", "int4")
        for kept in ("auto", "int8")
    }
    for kind in ("F32", "Q8_0", "Q4_0") if options.llama else ():
        scores[f"llama.cpp {kind}"] = llama(options.llama, options.model, kind, parts)
    print(f"{len(parts)} windows of {WINDOW} tokens, {size} bytes of {options.text.name}\n")
    print("| weights | bits per byte | against unquantized |\n|---|---|---|")
    for name, nats in scores.items():
        base = scores["Hagane none"]
        print(f"| {name} | {nats / math.log(2) / size:.4f} | {nats / base - 1:+.2%} |")


if __name__ == "__main__":
    main()
