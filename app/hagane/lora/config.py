"""What PEFT's `adapter_config.json` says of a LoRA adapter, checked. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hagane.system.errors import ModelError

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Variants of LoRA that compute something else: an adapter that asks for one would be served wrong.
_REFUSED = (
    "use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "modules_to_save",
    "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "corda_config", "eva_config", "megatron_config",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """Rank, strength and place of an adapter (Hu et al., 2021, arXiv:2106.09685).

    `alpha` and `rank` hold for every matrix but those that a pattern names: patterns map the end of
    a module's path, or a regular expression for it, to a value of its own. `rslora` divides by the
    square root of the rank (Kalajdzievski, 2023, arXiv:2312.03732).
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...] = TARGETS
    rslora: bool = False
    base_model: str = ""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank at the module path `module`."""
        return int(_matched(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of the two factors is multiplied by at the module path `module`."""
        rank = self.rank_of(module)
        return _matched(self.alpha_pattern, module, self.alpha) / (
            rank**0.5 if self.rslora else rank
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that PEFT reads."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(self.target_modules),
            "use_rslora": self.rslora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
        }

    @classmethod
    def load(cls, directory: Path) -> AdapterConfig:
        """Raises ModelError naming the file, the key and the value at fault."""
        path = directory / ADAPTER_CONFIG_FILE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{path} does not exist: an adapter is a PEFT directory") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(stored, dict) or stored.get("peft_type") != "LORA":
            raise ModelError(f"{path}: peft_type must be LORA")
        for key in _REFUSED:
            if stored.get(key):
                raise ModelError(f"{path}: {key} {stored[key]!r} is not supported")
        if stored.get("bias", "none") != "none":
            raise ModelError(f"{path}: bias {stored['bias']!r} is not supported; train with 'none'")
        rank = _number(path, stored, "r")
        if rank != int(rank):
            raise ModelError(f"{path}: r is {rank!r}; it must be a whole number")
        return cls(
            rank=int(rank),
            alpha=_number(path, stored, "lora_alpha"),
            target_modules=_targets(path, stored.get("target_modules")),
            rslora=bool(stored.get("use_rslora")),
            base_model=str(stored.get("base_model_name_or_path") or ""),
            rank_pattern=_pattern(path, stored, "rank_pattern"),
            alpha_pattern=_pattern(path, stored, "alpha_pattern"),
        )


def adapter_digest(directory: Path) -> str:
    """A hash of the adapter's content, hexadecimal: equal for equal results whatever the name.

    Raises ModelError if a file is missing.
    """
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        try:
            with (directory / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{directory / name} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _matched(pattern: Mapping[str, Any], module: str, default: float) -> float:
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return float(value)
    return default


def _number(path: Path, stored: dict[str, Any], key: str) -> float:
    value = stored.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ModelError(f"{path}: {key} is {value!r}; it must be a positive number")
    return value


def _targets(path: Path, value: Any) -> tuple[str, ...]:
    """The kinds of matrix named; a regular expression is checked against the weights instead."""
    if isinstance(value, str):
        return TARGETS
    if not isinstance(value, list) or not value:
        raise ModelError(f"{path}: target_modules is {value!r}; it must be a list of module names")
    kinds = {str(name).rpartition(".")[2] for name in value}
    if unknown := sorted(kinds - set(TARGETS)):
        raise ModelError(
            f"{path}: target_modules names {unknown[0]!r}; supported are {', '.join(TARGETS)}"
        )
    return tuple(name for name in TARGETS if name in kinds)


def _pattern(path: Path, stored: dict[str, Any], key: str) -> dict[str, Any]:
    pattern = stored.get(key) or {}
    if not isinstance(pattern, dict):
        raise ModelError(f"{path}: {key} is {pattern!r}; it must be an object")
    for name in pattern:
        _number(path, pattern, name)
        try:
            re.compile(name)
        except re.error as error:
            raise ModelError(
                f"{path}: {key} has {name!r}, no regular expression: {error}"
            ) from None
    return pattern
