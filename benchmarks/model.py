"""Write a model with random weights in Qwen3-0.6B's shape as a Hugging Face directory.

Usage: python benchmarks/model.py DIRECTORY   (about 1.2 GB)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


def make_model(directory: Path) -> None:
    """28 layers, hidden 1024, 16 query and 8 KV heads of 128, vocabulary 151,936, tied, bf16."""
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        max_position_embeddings=16384, dtype="bfloat16", eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    make_tokenizer(config.vocab_size).save_pretrained(directory)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A word for every id: the load is random ids, but every streamed token must have a text."""
    words = {f"t{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t0")


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
