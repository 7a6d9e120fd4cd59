"""A model's configuration, whatever it is stored in. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hagane.models.config import CONFIG_FILE, ModelConfig
from hagane.models.encoder_config import EncoderConfig
from hagane.models.families import read_config, read_config_file
from hagane.system.files import read_json_object
from hagane.weights.sources.gguf.file import SUFFIX, GGUFModel, model_stem


def is_gguf(path: Path) -> bool:
    """Whether a model's path names a GGUF file, not a directory."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def load_config(path: Path) -> ModelConfig:
    """The configuration of a Hugging Face directory or a GGUF file. Raises ModelError."""
    if not is_gguf(path):
        return read_config_file(path)
    return read_config(config_dict(path), source=str(path))


def load_any_config(path: Path) -> ModelConfig | EncoderConfig:
    """As `load_config`, of encoders too. Raises ModelError."""
    return EncoderConfig.find(path) or load_config(path)


def config_dict(path: Path) -> dict[str, Any]:
    """The content of the model's `config.json`, or its equivalent. Raises ModelError."""
    if is_gguf(path):
        # It needs numpy, which a server has no other use for.
        from hagane.weights.sources.gguf.architectures import huggingface_config

        return huggingface_config(GGUFModel(path))
    read_config_file(path)
    return read_json_object(path / CONFIG_FILE)


def model_name(path: Path) -> str:
    """The name that a model is served under unless it is given another."""
    return model_stem(path) if is_gguf(path) else path.name
