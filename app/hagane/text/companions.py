"""The tokenizer and sampling defaults of a GGUF file, as the files of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

from hagane.system.files import write_text
from hagane.text.generation_defaults import GenerationDefaults
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import load_config


def write_companions(model: Path, directory: Path) -> None:
    """Write the files besides weights and config.json that `directory` needs to be served.

    Raises ModelError if the GGUF file `model` has no tokenizer that can be read.
    """
    tokenizer = Tokenizer.load(model)
    defaults = GenerationDefaults.load(model, tokenizer, load_config(model))
    sampling = {
        "do_sample": True,
        "eos_token_id": list(defaults.eos_token_ids),
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": defaults.top_k,
        "repetition_penalty": defaults.repetition_penalty,
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.config}
    write_text(directory / "tokenizer.json", tokenizer.to_json())
    write_text(directory / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    write_text(directory / "generation_config.json", json.dumps(sampling, indent=2) + "\n")
