"""Read and validate PEFT's `adapter_config.json`. Needs no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hagane.lora.targets import Targets
from hagane.system.errors import ModelError
from hagane.system.files import open_regular, read_json_object
from hagane.system.sandbox import SandboxError
from hagane.system.shapes import shaped

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Bytes. Weights are bounded once more, by the ranks that the configuration names.
_LARGEST_CONFIG, _LARGEST_WEIGHTS = 4 << 20, 64 << 30
# Variants of LoRA that compute something else: adapters with one of them would be served wrongly.
_REFUSED = (
    "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication",
    "target_parameters", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config", "megatron_config",
)  # fmt: skip
# Initializations of A and B that do not change the base. All others (pissa, olora, corda, loftq,
# lora_ga) make the factors relative to a base that was changed, which no other adapter may see.
_HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

_Rank = Annotated[int, Meta(ge=1, le=8192)]
# Beyond it the product overflows in 16 bits.
_Alpha = Annotated[float, Meta(gt=0, le=65536)]
_Names = str | list[str] | None
_Token = Annotated[int, Meta(ge=0)]
# The modules whose rows an adapter may replace, by what PEFT calls them.
EMBEDDING, HEAD = "embed_tokens", "lm_head"


class _StoredConfig(msgspec.Struct, frozen=True):
    """The keys of `adapter_config.json` that change what an adapter computes."""

    r: _Rank
    lora_alpha: _Alpha
    target_modules: _Names = None
    exclude_modules: _Names = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: _Names = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    trainable_token_indices: list[_Token] | dict[str, list[_Token]] | None = None
    base_model_name_or_path: str | None = None


@dataclass(frozen=True)
class AdapterConfig:
    """Rank, strength and place of an adapter (Hu et al., 2021, arXiv:2106.09685).

    `alpha` and `rank` hold for every matrix but those that a pattern names. `rslora` divides by the
    square root of the rank (Kalajdzievski, 2023, arXiv:2312.03732). With `dora` rows have
    magnitudes (`lora/dora.py`). The fields of `Targets` mean what they mean there. `token_ids` are
    the tokens whose rows are replaced, by `embed_tokens` and `lm_head`; a tied head has those of
    the embedding.
    """

    rank: int
    alpha: float
    target_modules: str | tuple[str, ...] | None = TARGETS
    rslora: bool = False
    dora: bool = False
    base_model: str = ""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def resolve(
        self, modules: Sequence[str], prefix: str = "model."
    ) -> dict[str, tuple[int, float]]:
        """Rank, and what the product of the factors is multiplied by, of each changed module.

        In the whole model their paths begin with `prefix`. Raises ModelError if a pattern is no
        regular expression or takes too long to match.
        """
        targets = Targets(
            rank=self.rank,
            alpha=self.alpha,
            target_modules=self.target_modules,
            exclude_modules=self.exclude_modules,
            layers_to_transform=self.layers_to_transform,
            layers_pattern=self.layers_pattern,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
            prefix=prefix,
        )
        try:
            found = targets.resolve(modules)
        except (SandboxError, ValueError) as error:
            raise ModelError(f"a module pattern of the adapter cannot be used: {error}") from None
        return {
            module: (rank, alpha / (math.sqrt(rank) if self.rslora else rank))
            for module, (rank, alpha) in found.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that PEFT reads."""
        tokens = {name: list(ids) for name, ids in self.token_ids.items()}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": _unfrozen(self.target_modules),
            "exclude_modules": _unfrozen(self.exclude_modules),
            "layers_to_transform": _unfrozen(self.layers_to_transform),
            "layers_pattern": _unfrozen(self.layers_pattern),
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "trainable_token_indices": tokens or None,
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
        if not path.exists():
            raise ModelError(f"{path} does not exist: an adapter is a PEFT directory")
        stored = read_json_object(path, _LARGEST_CONFIG)
        _refuse_variants(path, stored)
        checked = shaped(stored, _StoredConfig, str(path))
        return cls(
            rank=checked.r,
            alpha=checked.lora_alpha,
            target_modules=_target_modules(path, checked),
            rslora=bool(checked.use_rslora),
            dora=bool(checked.use_dora),
            base_model=checked.base_model_name_or_path or "",
            rank_pattern=checked.rank_pattern or {},
            alpha_pattern=checked.alpha_pattern or {},
            exclude_modules=_frozen(checked.exclude_modules),
            layers_to_transform=_frozen(checked.layers_to_transform),
            layers_pattern=_frozen(checked.layers_pattern),
            token_ids=_token_ids(path, checked),
        )


def _token_ids(path: Path, checked: _StoredConfig) -> dict[str, tuple[int, ...]]:
    stored = checked.trainable_token_indices or {}
    found = {}
    for name, ids in (stored if isinstance(stored, dict) else {EMBEDDING: stored}).items():
        module = name.rpartition(".")[2]
        if module not in (EMBEDDING, HEAD) or module in found:
            raise ModelError(
                f"{path}: trainable_token_indices names {name!r}; it may name {EMBEDDING} and "
                f"{HEAD}, once each"
            )
        if len(set(ids)) < len(ids):
            raise ModelError(f"{path}: trainable_token_indices names a token of {name} twice")
        found[module] = tuple(ids)
    return found


def _refuse_variants(path: Path, stored: dict[str, Any]) -> None:
    if stored.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type must be LORA, got {stored.get('peft_type')!r}")
    for key in _REFUSED:
        if stored.get(key):
            raise ModelError(f"{path}: {key} {stored[key]!r} is not supported")
    if stored.get("bias", "none") not in ("none", None):
        raise ModelError(f"{path}: bias {stored['bias']!r} is not supported; train with 'none'")
    init = stored.get("init_lora_weights")
    if (init.lower() if isinstance(init, str) else init) not in _HARMLESS_INIT:
        raise ModelError(
            f"{path}: init_lora_weights {init!r} changes the base model, which others share; save "
            "the adapter with save_pretrained(..., path_initial_model_for_weight_conversion=...), "
            "which turns it into an ordinary one"
        )


def _target_modules(path: Path, checked: _StoredConfig) -> str | tuple[str, ...] | None:
    names = checked.target_modules
    if isinstance(names, str) and (
        checked.layers_to_transform is not None or checked.layers_pattern is not None
    ):
        raise ModelError(
            f"{path}: target_modules is a regular expression; with it layers_to_transform "
            "and layers_pattern mean nothing: remove them"
        )
    if names is not None and not names:
        raise ModelError(f"{path}: target_modules is {names!r}; it must name modules")
    return tuple(names) if isinstance(names, list) else names


def _frozen(value: str | int | list[Any] | None) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _unfrozen(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def adapter_digest(directory: Path) -> str:
    """A hash of the adapter's content, hexadecimal, independent of its name.

    Raises ModelError if a file is missing or not a regular file.
    """
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        with open_regular(directory / name, _LARGEST_WEIGHTS) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
