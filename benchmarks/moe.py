"""Measure a mixture of experts of Qwen3-30B-A3B's shape, with random weights and few layers.

Usage: python benchmarks/moe.py FILE.gguf [--layers N] [--quantize none|int8|int4 ...]
       [--prefill N] [--streams N ...] [--context N] [--llama PYTHON]

Writes FILE, whose matrices are of type Q4_0, if it is not there: 0.36 GB a layer. Steps run as the
engine runs them, each with new tokens, whose experts are others; the fastest half of the rounds
counts. `none` serves the file's own bits. With --llama, the interpreter of an environment with
llama-cpp-python, the same file runs there. The vocabulary is small, so that the few layers and not
the head are what is measured.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from hagane.engine.step.batch import Batch
from hagane.engine.step.graphs import DecodeGraphs
from hagane.kernels import cpu
from hagane.models.config import Quantization
from hagane.system.machine import usable_cores
from hagane.weights.load import load_model

VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, CHOSEN, INNER = (
    8192, 2048, 32, 4, 128, 128, 8, 768,
)  # fmt: skip
BLOCK = 16
HERE = Path(__file__).parent


def write_model(path: Path, layers: int) -> None:
    """All experts have the same random values: they differ in where they lie."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen3moe")
    for key, value in {
        "context_length": 4096, "embedding_length": HIDDEN, "block_count": layers,
        "feed_forward_length": 6144, "expert_feed_forward_length": INNER, "expert_count": EXPERTS,
        "expert_used_count": CHOSEN, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
    }.items():  # fmt: skip
        writer.add_uint32(f"qwen3moe.{key}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
    writer.add_token_merges(["t 1"])

    def matrix(name: str, rows: int, columns: int, copies: int = 0) -> None:
        floats = rng.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5
        codes = gguf.quantize(floats, GGMLQuantizationType.Q4_0)
        if copies:
            codes = np.broadcast_to(codes, (copies, *codes.shape)).copy()
        writer.add_tensor(f"{name}.weight", codes, raw_dtype=GGMLQuantizationType.Q4_0)

    def vector(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape) * 0.05
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    matrix("token_embd", VOCAB, HIDDEN)
    matrix("output", VOCAB, HIDDEN)
    vector("output_norm", HIDDEN)
    for layer in range(layers):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm", HIDDEN)
        vector(f"{block}.ffn_norm", HIDDEN)
        vector(f"{block}.attn_q_norm", HEAD_DIM)
        vector(f"{block}.attn_k_norm", HEAD_DIM)
        vector(f"{block}.ffn_gate_inp", EXPERTS, HIDDEN)
        matrix(f"{block}.attn_q", HEADS * HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_k", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_v", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_output", HIDDEN, HEADS * HEAD_DIM)
        matrix(f"{block}.ffn_gate_exps", INNER, HIDDEN, EXPERTS)
        matrix(f"{block}.ffn_up_exps", INNER, HIDDEN, EXPERTS)
        matrix(f"{block}.ffn_down_exps", HIDDEN, INNER, EXPERTS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def step_of(rng: random.Random, lengths: list[int], contexts: list[int]) -> Batch:
    """A step that brings the last `lengths` tokens of contexts, of which the last is sampled."""
    width = -(-max(contexts) // BLOCK)
    places = [range(c - n, c) for n, c in zip(lengths, contexts, strict=True)]
    starts = np.concatenate(([0], np.cumsum(lengths))).tolist()
    decodes = len(lengths) if max(lengths) == 1 else 0
    return Batch(
        token_ids=[rng.randrange(10, VOCAB) for _ in range(starts[-1])],
        positions=[p for own in places for p in own],
        slots=[i * width * BLOCK + p for i, own in enumerate(places) for p in own],
        tables=[list(range(i * width, (i + 1) * width)) for i in range(len(lengths))],
        starts=starts,
        lengths=contexts,
        decodes=decodes,
        block_size=BLOCK,
        logit_rows=[end - 1 for end in starts[1:]],
    )


def seconds(run: Callable[[], object], rounds: int) -> float:
    """The median of the faster half."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return statistics.median(sorted(taken)[: -(-rounds // 2)])


def measure(path: Path, quantize: str, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second."""
    quantization = None if quantize == "none" else Quantization.choose(quantize, cpu=True)
    model, _ = load_model(
        path, device="cpu", dtype=torch.bfloat16, quantization=quantization, operations=cpu
    )
    config, most = model.eval().config, max(options.streams)
    width = -(-max(options.context, options.prefill) // BLOCK)
    shape = most * width, BLOCK, config.kv_heads, config.head_dim
    caches = [
        cpu.allocate_cache(*shape, torch.bfloat16, torch.device("cpu"))
        for _ in range(config.layers)
    ]
    graphs = DecodeGraphs(model, caches, max_rows=most, max_blocks=width, block_size=BLOCK)
    rng = random.Random(0)

    def timed(lengths: list[int], contexts: list[int], rounds: int) -> float:
        graphs.run(step_of(rng, lengths, contexts))
        return seconds(lambda: graphs.run(step_of(rng, lengths, contexts)), rounds)

    prefill = timed([options.prefill], [options.prefill], 5)
    figures = {f"prefill {options.prefill}": options.prefill / prefill}
    for streams in options.streams:
        spent = timed([1] * streams, [options.context] * streams, 60)
        figures[f"{streams} streams"] = streams / spent
    return figures


def measure_llama(python: str, path: Path, options: argparse.Namespace) -> dict[str, float]:
    plan = {
        "prompts": [options.prefill], "streams": options.streams, "context": options.context,
        "new_tokens": 30, "rounds": 3, "tail": 16, "threads": len(usable_cores()), "vocab": VOCAB,
    }  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(plan))
        file.flush()
        command = [python, str(HERE / "peer_llama.py"), str(path), file.name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    figures = {f"prefill {n}": rate for n, rate in found["prefill"].items()}
    return figures | {f"{n} streams": rate for n, rate in found["decode"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--quantize", nargs="*", default=["int4"])
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--streams", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--context", type=int, default=160)
    parser.add_argument("--llama")
    options = parser.parse_args()
    if not options.file.exists():
        write_model(options.file, options.layers)
    print(f"{cpu.start()}, {len(usable_cores())} threads; tokens per second", flush=True)
    for quantize in options.quantize:
        print("hagane", quantize, json.dumps(measure(options.file, quantize, options)), flush=True)
    if options.llama:
        print("llama.cpp Q4_0", json.dumps(measure_llama(options.llama, options.file, options)))


if __name__ == "__main__":
    sys.exit(main())
