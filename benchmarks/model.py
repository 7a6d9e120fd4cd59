"""Writes a random model in Qwen3-0.6B's shape: a Hugging Face directory.

Usage: python benchmarks/model.py DIRECTORY   (about 1.2 GB)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

BUILTIN = Path(__file__).resolve().parents[1] / "models" / "hagane-mini"


def make_model(directory: Path) -> None:
    """28 layers, hidden 1024, 16 query and 8 KV heads of 128, vocabulary 151,936, tied, bf16."""
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        max_position_embeddings=16384, dtype="bfloat16", eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    # Any tokenizer does: the load is random token ids.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BUILTIN / name, directory / name)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
