"""llama.cpp on the same load, through the C API that llama-cpp-python exposes.

Usage: python benchmarks/peer_llama.py MODEL.gguf PLAN.json   (prints one JSON object)
       python benchmarks/peer_llama.py --convert DIRECTORY MODEL.gguf Q4_0|Q8_0

Runs in an environment of its own with `llama-cpp-python` (built on this machine) and `gguf`.
Decoding is timed without sampling: what is left out is left out in llama.cpp's favour.
"""

from __future__ import annotations

import json
import random
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
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 array) of a bfloat16 checkpoint in one file."""
    data = (directory / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name in ("__metadata__", "lm_head.weight"):
            continue
        start, end = entry["data_offsets"]
        halves = np.frombuffer(data[8 + size + start : 8 + size + end], dtype=np.uint16)
        wide = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
        stem = name.removesuffix(".weight")
        if stem in TOP:
            yield f"{TOP[stem]}.weight", wide
        else:
            _, _, layer, rest = stem.split(".", 3)
            yield f"blk.{layer}.{LAYER[rest]}.weight", wide


def convert(directory: Path, target: Path, kind: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
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
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            # llama.cpp's own recipe keeps the embedding, here also the head, at 8 bits or so.
            wanted = gguf.GGMLQuantizationType.Q8_0 if name.startswith("token_embd") else quantized
            writer.add_tensor(name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Runner:
    def __init__(self, path: Path, streams: int, context: int, threads: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        if hasattr(params, "kv_unified"):
            params.kv_unified = True
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
        # The computation may still run: asking for the logits waits for it.
        llama.llama_get_logits_ith(self.context, len(rows) - 1)

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


def measure(path: Path, plan: dict) -> dict:
    started = time.monotonic()
    context = max(*plan["prompts"], max(plan["streams"]) * (plan["context"] + plan["new_tokens"]))
    runner = Runner(path, max(plan["streams"]), context + 512, plan["threads"])
    ready = time.monotonic() - started
    rng = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(10, 150_000) for _ in range(length)]

    runner.prefill(prompt(64))
    prefill, decode = {}, {}
    for length in plan["prompts"]:
        rates = []
        for _ in range(plan["rounds"]):
            runner.clear()
            tokens = prompt(length)
            begin = time.monotonic()
            runner.prefill(tokens)
            rates.append(length / (time.monotonic() - begin))
        prefill[length] = statistics.median(rates)
    for streams in plan["streams"]:
        rates = []
        for _ in range(plan["rounds"]):
            runner.clear()
            for sequence in range(streams):
                runner.prefill(prompt(plan["context"]), sequence)
            begin = time.monotonic()
            for step in range(plan["new_tokens"]):
                position = plan["context"] + step
                runner.decode(
                    [(rng.randrange(10, 150_000), position, s, True) for s in range(streams)]
                )
            rates.append(streams * plan["new_tokens"] / (time.monotonic() - begin))
        decode[streams] = statistics.median(rates)
    return {"ready_seconds": ready, "prefill": prefill, "decode": decode}


if __name__ == "__main__":
    if sys.argv[1] == "--convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
