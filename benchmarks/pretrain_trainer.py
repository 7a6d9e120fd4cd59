"""transformers' Trainer with its Llama for benchmarks/pretrain.py: reads counts, writes seconds."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pretrain import LENGTH, ROWS, STEPS, VOCABULARY
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Rows(Dataset):
    def __init__(self, path: Path) -> None:
        self.tokens = np.memmap(path, dtype="<u2", mode="r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // LENGTH

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        part = self.tokens[row * LENGTH : (row + 1) * LENGTH].astype(np.int64)
        ids = torch.from_numpy(part)
        return {"input_ids": ids, "labels": ids}


class Turns(TrainerCallback):
    """Waits for its turn, before a step that begins one."""

    def __init__(self) -> None:
        self.left = 0
        self.begin = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        if self.left == 0:
            self.left = int(sys.stdin.readline())
            self.begin = time.monotonic()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.left -= 1
        if self.left == 0:
            print("seconds", time.monotonic() - self.begin, flush=True)


def main(path: Path) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=ROWS, max_steps=STEPS, bf16=True, use_cpu=True,
            torch_compile=True, optim="adamw_torch_fused", save_strategy="no", logging_steps=STEPS,
            report_to=[], disable_tqdm=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        Trainer(model, arguments, train_dataset=Rows(path), callbacks=[Turns()]).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
