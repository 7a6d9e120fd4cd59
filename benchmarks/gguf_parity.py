"""Compare a served GGUF file with transformers on weights that the `gguf` package dequantized.

Usage: python benchmarks/gguf_parity.py MODEL.gguf [--tokens 200] [--text FILE]

Serves the file in float32 and prints: a chat through the openai client; whether each of TOKENS
greedy tokens is the reference's own choice; the largest difference of a log-probability, of the
five likeliest tokens at each place. With FILE: whether its tokens are those of transformers'
conversion of the file. The reference computes one layer at a time, so that a model need not fit
into memory as floats.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import unicodedata
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import openai
import torch
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import config_dict
from hagane.weights.sources.gguf.architectures import architecture
from hagane.weights.sources.gguf.file import GGUFModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

QUESTIONS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Now add a docstring and a type hint.",
)
PROMPT = "def quicksort(items):\n"
PORT = 8479


@contextmanager
def serving(model: Path) -> Iterator[openai.OpenAI]:
    """A server of the file in float32, ended with the block."""
    command = ["serve", "--model", str(model), "--dtype", "float32", "--port", str(PORT)]
    command += ["--context-length", "2048", "--kv-cache-memory", "512MiB"]
    with subprocess.Popen(
        [sys.executable, "-m", "hagane.cli.main", *command],
        stdout=subprocess.DEVNULL,
        env=os.environ.copy(),
    ) as process:
        try:
            wait_ready(process)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none")
        finally:
            process.terminate()


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    """Returns when the server is ready. Raises RuntimeError if it ends before."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server ended with {process.returncode}")


def chat(client: openai.OpenAI, model: str) -> None:
    """Print a chat of two turns."""
    messages: list[dict[str, str]] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=160
        )
        text = answer.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": text})
        print(f"user: {question}\nassistant: {text}\n")


@torch.no_grad()
def reference_logits(path: Path, ids: list[int]) -> Tensor:
    """float32 [tokens, vocabulary] by transformers' own layers, one at a time."""
    config = AutoConfig.for_model(**transformers_config(path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    names = architecture(GGUFModel(path))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def floats(name: str) -> Tensor:
        tensor = stored[names.tensor_name(name)]
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())

    positions = torch.arange(len(ids))[None]
    hidden = floats("model.embed_tokens.weight")[torch.tensor(ids)][None]
    rotary = type(model.model.rotary_emb)(config=config)
    angles = rotary(hidden, positions)
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)[None, None]
    for i, layer in enumerate(model.model.layers):
        weights = {n: floats(f"model.layers.{i}.{n}") for n, _ in layer.named_parameters()}
        layer.load_state_dict(weights, assign=True)
        out = layer(hidden, attention_mask=mask, position_embeddings=angles, position_ids=positions)
        hidden = out[0] if isinstance(out, tuple) else out
        layer.to("meta")
    norm = model.model.norm
    norm.load_state_dict({"weight": floats("model.norm.weight")}, assign=True)
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return torch.nn.functional.linear(norm(hidden)[0], floats(f"{head}.weight"))


def transformers_config(path: Path) -> dict[str, object]:
    raw = config_dict(path)
    kind = raw["architectures"][0].removesuffix("ForCausalLM").lower()
    return {"model_type": kind} | raw


def compare(client: openai.OpenAI, model: str, path: Path, tokens: int) -> None:
    """Print how greedy text and log-probabilities agree with the reference's."""
    tokenizer = Tokenizer.load(path)
    answer = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=tokens, temperature=0, logprobs=5,
        extra_body={"ignore_eos": True},
    ).choices[0]  # fmt: skip
    prompt = tokenizer.encode(PROMPT)
    ids = tokenizer.encode(PROMPT + answer.text)
    start = len(prompt)
    assert answer.logprobs is not None
    generated = ids[start:]
    if [tokenizer.token_text(i) for i in generated] != answer.logprobs.tokens:
        print("the text is not tokenized as it was generated: compared as far as it is")
    logits = reference_logits(path, ids)[start - 1 : -1]
    logprobs = logits.log_softmax(-1)
    best = logits.argmax(-1).tolist()
    same = sum(a == b for a, b in zip(best, generated, strict=True))
    margins = logits.topk(2).values.diff().abs()
    print(
        f"{same} of {len(generated)} greedy tokens are the reference's; "
        f"the smallest margin between two best is {margins.min():.4f}"
    )
    worst = 0.0
    for row, tops in zip(logprobs, answer.logprobs.top_logprobs or [], strict=False):
        values = row.topk(5).values.tolist()
        ours = sorted((tops or {}).values(), reverse=True)[:5]
        worst = max(worst, *(abs(a - b) for a, b in zip(values, ours, strict=False)))
    print(f"largest difference of the five best log-probabilities: {worst:.5f}")


def compare_tokens(path: Path, text: str) -> None:
    """Print whether `text` has the same tokens as by transformers' conversion of the file."""
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    expected = theirs.encode(text, add_special_tokens=False)
    got = Tokenizer.load(path).encode(text, add_special_tokens=False)
    if got != expected:
        # transformers leaves out the composing that Qwen's own tokenizer begins with.
        expected = theirs.encode(unicodedata.normalize("NFC", text), add_special_tokens=False)
    print(
        f"{len(text.encode())} bytes: {len(got)} tokens, equal to transformers': {got == expected}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--text", type=Path)
    arguments = parser.parse_args()
    path: Path = arguments.model
    with serving(path) as client:
        model = client.models.list().data[0].id
        chat(client, model)
        compare(client, model, path, arguments.tokens)
    if arguments.text:
        compare_tokens(path, arguments.text.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
