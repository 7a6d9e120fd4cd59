"""Export a trained model as a directory that Hagane and transformers load."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch

from hagane.data.documents import CHAT_TEMPLATE, END_OF_TEXT, TURN_END
from hagane.models.decoder import Transformer
from hagane.system.files import write_text
from hagane.weights.load import save_model


def export(model: Transformer, tokenizer: tokenizers.Tokenizer, directory: Path) -> None:
    """Write weights in bfloat16, config, tokenizer, chat template and sampling defaults."""
    save_model(model, directory, dtype=torch.bfloat16)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    sampling = {
        "eos_token_id": list(model.config.eos_token_ids),
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    for name, content in (("tokenizer_config", special), ("generation_config", sampling)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text(directory / f"{name}.json", text)
