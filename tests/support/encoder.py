"""Encoders of random weights."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    PretrainedConfig,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)


def encoder(directory: Path, kind: str) -> Path:
    """A random encoder with a WordPiece tokenizer: a bert, a roberta, or one of these crossed."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz."]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocab = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(1)
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 258,
        "initializer_range": 0.3,
    }
    models: dict[str, tuple[type, PretrainedConfig]] = {
        "bert": (BertModel, BertConfig(**sizes)),
        "roberta": (RobertaModel, RobertaConfig(**sizes, pad_token_id=1)),
        "modern bert": (
            ModernBertModel,
            ModernBertConfig(
                **sizes | {"num_hidden_layers": 4},
                local_attention=8,
                pad_token_id=0,
                initializer_cutoff_factor=3.0,
            ),
        ),
        "crossed bert": (BertForSequenceClassification, BertConfig(**sizes, num_labels=1)),
        "crossed roberta": (
            XLMRobertaForSequenceClassification,
            XLMRobertaConfig(**sizes, pad_token_id=1, type_vocab_size=1, num_labels=1),
        ),
    }
    make, config = models[kind]
    make(config).save_pretrained(directory)
    backend.save(str(directory / "tokenizer.json"))
    return directory
