"""Loss on texts by weight format, KV cache and all, compared with llama.cpp on the same weights.

Usage: python benchmarks/quality.py MODEL NAME=TEXT... [--scores DIRECTORY] [--formats LIST]
                                    [--llama PYTHON]

MODEL is a directory of unquantized weights. A TEXT is a file, directory or glob of plain text or
JSON Lines with `text` or `messages`. Windows of it are scored through the HTTP API (`echo` with
`logprobs`), each token but the first. Formats are `none`, `int8`, `int4` (groups as by default),
`int4:32` (groups of 32), `none+int8` (with another KV cache), a quantized directory, or one of
llama.cpp's: `BF16`, `Q8_0`, `Q4_0`, `Q4_K_M`.

Scores are kept in DIRECTORY, so that a run goes on where another ended. The table states nats per
token, and what a format loses against `none` with the standard error of that difference.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import httpx
import tokenizers
from hagane.data.documents import Corpus, documents
from hagane.system.machine import usable_cores

HERE = Path(__file__).resolve().parent
PEERS = ("BF16", "Q8_0", "Q4_0", "Q4_K_M")
# Of one document, so that a text's windows are not all of one kind.
MOST_OF_A_DOCUMENT = 2
Windows = list[list[int]]


@dataclass(frozen=True)
class Text:
    """Token ids [window] of each of a text's windows, and the bytes of their scored tokens."""

    name: str
    windows: Windows
    size: int


def read_text(model: Path, argument: str, count: int, length: int) -> Text:
    name, _, path = argument.partition("=")
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    ids: list[int] = []
    for document in documents(Corpus(path=Path(path))):
        # No token is longer than what few characters a window has at most.
        ids += tokenizer.encode(document[: 64 * length]).ids[: MOST_OF_A_DOCUMENT * length]
        if len(ids) >= count * length:
            break
    found = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)][:count]
    size = sum(_bytes(tokenizer, part) - _bytes(tokenizer, part[:1]) for part in found)
    return Text(name, found, size)


def _bytes(tokenizer: tokenizers.Tokenizer, ids: list[int]) -> int:
    return len(tokenizer.decode(ids, skip_special_tokens=False).encode())


@contextmanager
def hagane(model: Path, arguments: list[str]) -> Iterator[str]:
    """The URL of a server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(model),
               "--port", str(port), "--served-model-name", "m", "--context-length", "2048",
               "--kv-cache-memory", "256MiB", *arguments]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while server.poll() is None:
                try:
                    if httpx.get(f"{url}/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()


def score(url: str, windows: Windows) -> list[float]:
    """Nats of every token but the first of each window."""
    nats: list[float] = []
    for window in windows:
        body = {"model": "m", "prompt": window, "echo": True, "logprobs": 0, "max_tokens": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=600)
        answer.raise_for_status()
        nats += [-x for x in answer.json()["choices"][0]["logprobs"]["token_logprobs"][1:]]
    return nats


def score_hagane(model: Path, form: str, texts: list[Text], threads: int) -> dict[str, list[float]]:
    quantize, _, kept = form.partition("+")
    quantize, _, group = quantize.partition(":")
    arguments = ["--kv-cache-dtype", kept or "auto", "--threads", str(threads)]
    if Path(quantize).is_dir():
        model = Path(quantize)
    else:
        arguments += ["--quantize", quantize]
    arguments += ["--group-size", group] if group else []
    with hagane(model, arguments) as url:
        return {text.name: score(url, text.windows) for text in texts}


def score_llama(
    python: str, model: Path, form: str, texts: list[Text], threads: int
) -> dict[str, list[float]]:
    script = [python, str(HERE / "peer_llama.py")]
    with tempfile.TemporaryDirectory() as folder:
        source, target, plan = (Path(folder, name) for name in ("source", "target", "plan"))
        subprocess.run([*script, "--convert", str(model), str(source), "BF16"], check=True)
        if form == "BF16":
            target = source
        else:
            command = [*script, "--quantize", str(source), str(target), form]
            subprocess.run(command, check=True, capture_output=True)
        scores = {}
        for text in texts:
            plan.write_text(json.dumps(text.windows))
            command = [*script, "--score", str(target), str(plan), str(threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            scores[text.name] = json.loads(done.stdout.strip().splitlines()[-1])
    return scores


def lost(ours: list[float], whole: list[float]) -> str:
    """The change of the loss in percent, and its standard error by pairs of tokens."""
    differences = [a - b for a, b in zip(ours, whole, strict=True)]
    mean = statistics.fmean(whole)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) / mean
    return f"{statistics.fmean(differences) / mean:+.2%} ± {error:.2%}"


def table(scores: dict[str, dict[str, list[float]]], texts: list[Text]) -> Iterator[str]:
    yield "| format | " + " | ".join(text.name for text in texts) + " | all |"
    yield "|---|" + "---|" * (len(texts) + 1)
    base = scores["none"]
    for form, found in scores.items():
        pairs = [(found[text.name], base[text.name]) for text in texts]
        whole = [list(chain.from_iterable(lists)) for lists in zip(*pairs, strict=True)]
        pairs.append((whole[0], whole[1]))
        cells = (
            f"{statistics.fmean(ours):.4f}" + (f" ({lost(ours, exact)})" if form != "none" else "")
            for ours, exact in pairs
        )
        yield f"| {Path(form).name} | " + " | ".join(cells) + " |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", nargs="+", metavar="NAME=TEXT")
    parser.add_argument("--formats", default="none,int8,int4", help="comma-separated")
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--scores", type=Path, help="directory that keeps what was scored")
    parser.add_argument("--windows", type=int, default=24, help="of every text")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=len(usable_cores()))
    options: argparse.Namespace = parser.parse_args()
    return options


def main() -> None:
    options = parse()
    texts = [read_text(options.model, t, options.windows, options.length) for t in options.texts]
    folder = options.scores or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, list[float]]] = {}
    for form in options.formats.split(","):
        kept = folder / f"{form.replace('/', '_')}.json"
        if not kept.exists():
            found = (
                score_llama(options.llama, options.model, form, texts, options.threads)
                if form in PEERS
                else score_hagane(options.model, form, texts, options.threads)
            )
            kept.write_text(json.dumps(found))
        scores[form] = json.loads(kept.read_text())
    for text in texts:
        tokens = sum(map(len, text.windows))
        print(f"{text.name}: {len(text.windows)} windows, {tokens} tokens, {text.size} bytes")
    print("\nNats per token.\n")
    print("\n".join(table(scores, texts)))


if __name__ == "__main__":
    main()
