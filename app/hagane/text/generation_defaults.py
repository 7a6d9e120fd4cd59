"""The sampling defaults that a model brings in `generation_config.json`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hagane.models.config import ModelConfig
from hagane.system.errors import InvalidRequestError, ModelError
from hagane.system.files import read_json_object
from hagane.system.shapes import shaped
from hagane.text.chat_template import ChatTemplate
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import is_gguf
from hagane.weights.sources.gguf.file import GGUFFile

logger = logging.getLogger(__name__)

# Their names in a GGUF file, after `general.sampling.`.
_GGUF_KEYS = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "penalty_repeat",
}
# A user's and a model's turn, to see what the template puts after the latter.
_QUESTION, _ANSWER = "hello", "hagane's answer"


class _StoredDefaults(msgspec.Struct, frozen=True):
    """The keys of `generation_config.json` that are read; null is "not given"."""

    eos_token_id: int | list[int] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0)] | None = None
    top_k: int | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Sampling defaults of the model's authors; OpenAI's where they name none."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def load(
        cls,
        directory: Path,
        tokenizer: Tokenizer,
        config: ModelConfig,
        template: ChatTemplate | None = None,
    ) -> GenerationDefaults:
        """All ids that end an answer, and the sampling defaults.

        Those are the ids that the model's files name, and the one that `template` ends an answer
        with: a model trained on it says that one. Raises ModelError naming the file and the key
        that is malformed.
        """
        path, raw = _read(directory)
        stored = shaped(raw, _StoredDefaults, str(path))
        sampled = stored.do_sample is not False
        top_k = stored.top_k or 0
        # -1 is how some say "all", and more than all is all.
        limited = sampled and 0 < top_k < config.vocab_size
        return cls(
            eos_token_ids=_ends(path, stored, tokenizer, config, template),
            temperature=_given(stored.temperature, 1.0) if sampled else 1.0,
            top_p=min(_given(stored.top_p, 1.0), 1.0) if sampled else 1.0,
            top_k=top_k if limited else 0,
            repetition_penalty=_given(stored.repetition_penalty, 1.0),
        )


def turn_end(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token that the template ends an answer with, if it is the last message."""
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        text, _ = template.render_spans(messages, add_generation_prompt=False)
    except InvalidRequestError:
        return None
    _, answer, after = text.rpartition(_ANSWER)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False) if answer else []
    return ids[0] if ids and ids[0] in tokenizer.special_ids else None


def _ends(
    path: Path,
    stored: _StoredDefaults,
    tokenizer: Tokenizer,
    config: ModelConfig,
    template: ChatTemplate | None,
) -> tuple[int, ...]:
    named = stored.eos_token_id
    ids = set(named if isinstance(named, list) else [] if named is None else [named])
    ids |= set(config.eos_token_ids)
    own = (tokenizer.eos_token_id, turn_end(template, tokenizer) if template else None)
    ids |= {token for token in own if token is not None}
    impossible = {token for token in ids if not 0 <= token < config.vocab_size}
    if impossible:
        logger.warning(
            "%s: eos_token_id %s is not in the vocabulary and ends nothing", path, min(impossible)
        )
    return tuple(sorted(ids - impossible))


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _read(model: Path) -> tuple[Path, dict[str, Any]]:
    """The stored values with their file; empty where nothing is stored."""
    if is_gguf(model):
        file = GGUFFile(model)
        named = ((key, file.get(f"general.sampling.{name}")) for key, name in _GGUF_KEYS.items())
        return model, {key: value for key, value in named if value is not None}
    path = model / "generation_config.json"
    raw = read_json_object(path) if path.exists() else {}
    for key, value in raw.items():
        if isinstance(value, float) and value != value:
            raise ModelError(f"{path}: {key} is NaN")
    return path, raw
