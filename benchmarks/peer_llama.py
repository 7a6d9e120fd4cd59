"""Measure llama.cpp on the same load, through the C API that llama-cpp-python exposes.

Usage: python benchmarks/peer_llama.py MODEL.gguf PLAN.json   (prints one JSON object)
       python benchmarks/peer_llama.py --convert DIRECTORY MODEL.gguf F32|BF16|Q8_0|Q4_0
       python benchmarks/peer_llama.py --quantize MODEL.gguf SMALL.gguf Q8_0|Q4_0|Q4_K_M
       python benchmarks/peer_llama.py --score MODEL.gguf WINDOWS.json THREADS   (each token's nats)

Runs in an environment of its own with `llama-cpp-python` (built on this machine) and `gguf`.
Decoding is timed without sampling: what is left out is left out in llama.cpp's favour.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp as llama
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# `llama_ftype` of llama.h.
RECIPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}


def tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 array) of a bfloat16 or float32 checkpoint in one file."""
    tied = json.loads((directory / "config.json").read_text()).get("tie_word_embeddings", False)
    data = np.memmap(directory / "model.safetensors", dtype=np.uint8, mode="r")
    size = int.from_bytes(data[:8].tobytes(), "little")
    for name, entry in json.loads(data[8 : 8 + size].tobytes()).items():
        if name == "__metadata__" or (tied and name == "lm_head.weight"):
            continue
        start, end = entry["data_offsets"]
        raw = data[8 + size + start : 8 + size + end]
        if entry["dtype"] == "F32":
            wide = np.frombuffer(raw, dtype=np.float32)
        else:
            wide = (np.frombuffer(raw, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
        wide = wide.reshape(entry["shape"])
        stem, _, kind = name.rpartition(".")
        if stem in TOP:
            yield f"{TOP[stem]}.{kind}", wide
        else:
            _, _, layer, rest = stem.split(".", 3)
            yield f"blk.{layer}.{LAYER[rest]}.{kind}", wide


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `llama` rotates neighbouring features where Hugging Face's rotates halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def convert(directory: Path, target: Path, kind: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    architecture = {"qwen3": "qwen3", "qwen2": "qwen2", "llama": "llama"}[config["model_type"]]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    vocab = config["vocab_size"]
    writer.add_token_list([f"t{i}" for i in range(vocab)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab)
    writer.add_token_merges(["t 1"])
    quantized = gguf.GGMLQuantizationType[kind]
    for name, array in tensors(directory):
        if architecture == "llama" and ("attn_q.w" in name or "attn_k.w" in name):
            array = interleave(array, heads if "attn_q" in name else kv_heads)
        if array.ndim == 1 or array.shape[-1] % 32:
            writer.add_tensor(name, array.astype(np.float32))
        else:
            # llama.cpp's own recipe keeps the embedding, here also the head, at 8 bits or so.
            coarse = kind == "Q4_0" and name.startswith("token_embd")
            wanted = gguf.GGMLQuantizationType.Q8_0 if coarse else quantized
            writer.add_tensor(name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantize by llama.cpp's own recipe for this type, without an importance matrix."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = RECIPES[kind]
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise SystemExit(f"cannot quantize {source}")


class Runner:
    def __init__(self, path: Path, streams: int, context: int, threads: int) -> None:
        """`context` tokens for all streams together, whose caches are apart."""
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        self.batch = llama.llama_batch_init(512, 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows are (token, position, sequence, logits wanted)."""
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = wanted
        self.batch.n_tokens = len(rows)
        if llama.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")
        # The computation may still run; reading the logits waits for it.
        llama.llama_get_logits_ith(self.context, len(rows) - 1)

    def close(self) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def prefill(self, tokens: list[int], sequence: int = 0) -> None:
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            last = start + len(part) == len(tokens)
            self.decode([
                (token, start + i, sequence, last and i == len(part) - 1)
                for i, token in enumerate(part)
            ])  # fmt: skip

    def replace_tail(self, length: int, tail: list[int]) -> float:
        """Seconds of a prompt that differs from the cached one in its last tokens alone."""
        begin = time.monotonic()
        start = length - len(tail)
        llama.llama_memory_seq_rm(llama.llama_get_memory(self.context), 0, start, -1)
        last = len(tail) - 1
        self.decode([(token, start + i, 0, i == last) for i, token in enumerate(tail)])
        return time.monotonic() - begin


def measure(path: Path, plan: dict) -> dict:
    started = time.monotonic()
    runner = Runner(path, 1, max(plan["prompts"]) + 512, plan["threads"])
    ready = time.monotonic() - started
    rng, vocab = random.Random(0), plan.get("vocab", 150_000)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(10, vocab) for _ in range(length)]

    runner.prefill(prompt(64))
    prefill, prefix_hit, decode = {}, {}, {}
    for length in plan["prompts"]:
        fresh, hits = [], []
        for _ in range(plan["rounds"]):
            runner.clear()
            begin = time.monotonic()
            runner.prefill(prompt(length))
            fresh.append(time.monotonic() - begin)
            hits.append(runner.replace_tail(length, prompt(plan["tail"])))
        prefill[length] = length / statistics.median(fresh)
        prefix_hit[length] = statistics.median(hits)
    for streams in plan["streams"]:
        runner.close()
        # llama.cpp rounds the tokens of each stream up to a multiple of 256.
        each = -(-(plan["context"] + plan["new_tokens"]) // 256) * 256
        runner = Runner(path, streams, streams * each, plan["threads"])
        rates = []
        for _ in range(plan["rounds"]):
            runner.clear()
            for sequence in range(streams):
                runner.prefill(prompt(plan["context"]), sequence)
            begin = time.monotonic()
            for step in range(plan["new_tokens"]):
                position = plan["context"] + step
                runner.decode(
                    [(rng.randrange(10, vocab), position, s, True) for s in range(streams)]
                )
            rates.append(streams * plan["new_tokens"] / (time.monotonic() - begin))
        decode[streams] = statistics.median(rates)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {"prefill": prefill, "prefix_hit": prefix_hit, "decode": decode}
    return {"ready_seconds": ready, "peak_memory": peak} | figures


def score(path: Path, windows: list[list[int]], threads: int) -> list[float]:
    """Nats of every token but the first of each window, at most 512 tokens long."""
    runner = Runner(path, 1, 1024, threads)
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(runner.model))
    nats = []
    for window in windows:
        runner.clear()
        runner.decode([(token, i, 0, True) for i, token in enumerate(window)])
        for i, target in enumerate(window[1:]):
            row = llama.llama_get_logits_ith(runner.context, i)
            logits = np.ctypeslib.as_array(row, (vocab,)).astype(np.float64)
            top = logits.max()
            nats.append(float(np.log(np.exp(logits - top).sum()) + top - logits[target]))
    return nats


if __name__ == "__main__":
    if sys.argv[1] == "--score":
        model, plan, threads = sys.argv[2:]
        print(json.dumps(score(Path(model), json.loads(Path(plan).read_text()), int(threads))))
    elif sys.argv[1] == "--quantize":
        quantize(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    elif sys.argv[1] == "--convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
