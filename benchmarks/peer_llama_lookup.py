"""Decode with llama.cpp's prompt look-up, as llama-cpp-python has it, and without.

Usage: python benchmarks/peer_llama_lookup.py MODEL.gguf TASKS.json TOKENS   (prints a line a task)

Runs in an environment of its own with `llama-cpp-python`. TASKS.json maps names to messages.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding


def rate(model: Llama, task: str, tokens: int) -> float:
    """Tokens per second after the first one."""
    first, count = 0.0, 0
    messages = [{"role": "user", "content": task}]
    model.reset()
    for chunk in model.create_chat_completion(
        messages, max_tokens=tokens, temperature=0.0, stream=True
    ):
        if chunk["choices"][0]["delta"].get("content"):
            first = first or time.perf_counter()
            count += 1
    return (count - 1) / (time.perf_counter() - first)


def main(path: str, plan: str, tokens: int) -> None:
    tasks = json.loads(Path(plan).read_text(encoding="utf-8"))
    rates: dict[str, dict[str, float]] = {}
    for kind in ("off", "lookup"):
        draft = LlamaPromptLookupDecoding(num_pred_tokens=10) if kind == "lookup" else None
        model = Llama(
            path, n_ctx=8192, n_threads=len(os.sched_getaffinity(0)), draft_model=draft,
            logits_all=draft is not None, verbose=False,
        )  # fmt: skip
        rates[kind] = {name: rate(model, task, tokens) for name, task in tasks.items()}
        del model
    for name in tasks:
        off, lookup = rates["off"][name], rates["lookup"][name]
        print(f"llama.cpp {name:18} {off:8.1f}  {lookup:8.1f}  x{lookup / off:.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
