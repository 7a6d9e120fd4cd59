"""What `generation_config.json` says about how a model likes to be sampled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.models.config import ModelConfig
from hagane.system.errors import ModelError
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import is_gguf
from hagane.weights.sources.gguf.file import GGUFFile

# What a GGUF file calls them, after `general.sampling.`.
_GGUF_KEYS = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "penalty_repeat",
}


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Sampling defaults of the model's authors; OpenAI's where they name none."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer, config: ModelConfig) -> GenerationDefaults:
        """All end-of-text ids that the model's files name, and its sampling defaults.

        Raises ModelError naming the file and key that is malformed.
        """
        path, raw = _stored(directory)
        eos = raw.get("eos_token_id")
        ids = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
        ids |= set(config.eos_token_ids)
        if tokenizer.eos_token_id is not None:
            ids.add(tokenizer.eos_token_id)
        if not all(isinstance(i, int) and 0 <= i < config.vocab_size for i in ids):
            raise ModelError(f"{path}: eos_token_id {eos!r} is not in the vocabulary")

        def number(key: str, default: float, low: float, high: float) -> float:
            value = raw.get(key, default)
            value = default if value is None else value
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ModelError(f"{path}: {key} is {value!r}, not between {low:g} and {high:g}")
            return value

        sampled = raw.get("do_sample", True)
        return cls(
            eos_token_ids=tuple(sorted(ids)),
            temperature=number("temperature", 1.0, 0, 2) if sampled else 1.0,
            top_p=number("top_p", 1.0, 0, 1) if sampled else 1.0,
            top_k=int(number("top_k", 0, 0, config.vocab_size)) if sampled else 0,
            repetition_penalty=number("repetition_penalty", 1.0, 0.01, 10),
        )


def _stored(model: Path) -> tuple[Path, dict[str, Any]]:
    """What is stored, with the file it is from; empty where nothing is."""
    if is_gguf(model):
        file = GGUFFile(model)
        named = ((key, file.get(f"general.sampling.{name}")) for key, name in _GGUF_KEYS.items())
        return model, {key: value for key, value in named if value is not None}
    path = model / "generation_config.json"
    if not path.is_file():
        return path, {}
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
    return path, raw
