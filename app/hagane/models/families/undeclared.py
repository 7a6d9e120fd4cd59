"""Families without a declaration: served through transformers' own code, which is slower.

Their sizes are read here, without importing transformers. What its code needs beyond attention over
cached keys and values is refused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Found, Keys
from hagane.models.families.llama import base
from hagane.system.errors import ModelError
from hagane.system.installation import install_command
from hagane.system.shapes import shaped

# Older configurations have names of their own for sizes.
_NAMES = {
    "hidden_size": ("n_embd", "d_model", "hidden_dim"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "max_position_embeddings": ("n_positions", "max_sequence_length", "n_ctx"),
}
_ENDINGS = ("ForCausalLM", "LMHeadModel")
# Of `Keys`, besides sizes: the rest is the business of transformers.
_KEPT = ("vocab_size", "head_dim", "bos_token_id", "eos_token_id", "dtype", "torch_dtype",
         "sliding_window", "layer_types", "architectures", "model_type",
         "quantization_config")  # fmt: skip
_ATTENTION = {"full_attention", "sliding_attention"}
# Keys of models that keep states, and what these are of; files may not list their layers.
_STATES = {
    "linear_conv_kernel_dim": "linear attention",
    "conv_L_cache": "short convolutions",
    "mamba_d_conv": "state spaces",
}
# Rotations by factors that depend on the longest sequence of the batch.
_CHANGING = {"longrope", "su", "dynamic"}


def undeclared(raw: Mapping[str, Any], name: object, source: str, known: str) -> ModelConfig:
    """The sizes of a decoder of an undeclared architecture `name`.

    Raises ModelError, which lists the `known` architectures, if transformers' code cannot serve it.
    """
    refused = f"{source}: architectures is {raw.get('architectures')!r}; supported are {known}"
    kind = raw.get("model_type")
    if not isinstance(name, str) or not name.endswith(_ENDINGS) or not isinstance(kind, str):
        raise ModelError(refused)
    folder = _transformers()
    if folder is None:
        raise ModelError(
            f"{refused}. With transformers, too ({install_command('transformers')}), others may "
            "run through its own code"
        )
    if not _knows(folder, kind):
        raise ModelError(
            f"{refused}. transformers has no model_type {kind!r}: code from a repository is never "
            "run"
        )
    kinds = raw.get("layer_types") or raw.get("layers_block_type") or []
    others = sorted({str(k) for k in kinds} - _ATTENTION) if isinstance(kinds, list) else ["?"]
    if others or raw.get("is_encoder_decoder"):
        what = f"layers of {', '.join(others)}" if others else "an encoder"
        raise ModelError(f"{refused}. It has {what}, for which there is no cache here")
    if states := [what for key, what in _STATES.items() if raw.get(key) is not None]:
        raise ModelError(f"{refused}. It has states of {states[0]}, for which there is no cache")
    if changing := _rotations(raw) & _CHANGING:
        raise ModelError(
            f"{refused}. Its rotation ({min(changing)}) changes with what else is in the batch"
        )
    return _config(raw, source)


def _config(raw: Mapping[str, Any], source: str) -> ModelConfig:
    plain = {key: raw[key] for key in _KEPT if key in raw}
    for key, others in _NAMES.items():
        plain[key] = next((raw[k] for k in (key, *others) if raw.get(k) is not None), None)
    if plain["intermediate_size"] is None and isinstance(plain["hidden_size"], int):
        plain["intermediate_size"] = 4 * plain["hidden_size"]
    given = {key: value for key, value in plain.items() if value is not None}
    found: Found[Keys] = Found(shaped(given, Keys, source), given, source)
    if found.quantization is not None or "quantization_config" in raw:
        raise found.error("quantization_config", "is given: undeclared families are read as floats")
    config = base(found)
    if found.keys.layer_types:
        specs = found.layers(found.kinds(), config.rope, config.rope)
        config = replace(config, layer_specs=specs)
    return replace(config, declared=False, raw=raw)


def _rotations(raw: Mapping[str, Any]) -> set[str]:
    """The kinds of rotation that a `config.json` names, of any of its layers."""
    given = [raw.get(key) for key in ("rope_parameters", "rope_scaling")]
    scaled = [one for one in given if isinstance(one, dict)]
    scaled += [one for each in scaled for one in each.values() if isinstance(one, dict)]
    return {str(one.get("rope_type", one.get("type"))) for one in scaled}


def _knows(folder: Path, kind: str) -> bool:
    """Whether transformers has code for a model_type; a text model lies where its whole does."""
    names = kind.replace("-", "_"), kind.replace("-", "_").removesuffix("_text")
    return any((folder / "models" / name).is_dir() for name in names)


def _transformers() -> Path | None:
    """Where transformers is installed; it is not imported."""
    spec = importlib.util.find_spec("transformers")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
