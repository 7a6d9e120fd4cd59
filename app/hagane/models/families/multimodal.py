"""The text models of Gemma 3, Llama 4 and Mistral 3 in files that have an encoder of images, too.

They are read, and saved, as the text models that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from hagane.models.config import ModelConfig
from hagane.models.families.gemma import Gemma3Keys, gemma3
from hagane.models.families.keys import Found, Keys
from hagane.models.families.llama import windowed
from hagane.models.families.llama4 import Llama4Keys, llama4
from hagane.models.layouts import Layout
from hagane.system.shapes import shaped

# Names begin in one way in files, in another in those that transformers 5 saves.
_NESTED = Layout(
    outer={
        "model.embed_tokens": "language_model.model.embed_tokens",
        "model.norm": "language_model.model.norm",
        "lm_head": "language_model.lm_head",
    },
    layer="language_model.model.layers",
    ignored=(
        "vision_tower.", "vision_model.", "multi_modal_projector.",
        "model.vision_tower.", "model.vision_model.", "model.multi_modal_projector.",
    ),
    others=(
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
    ),
)  # fmt: skip
_KEPT = ("quantization_config", "dtype", "torch_dtype", "eos_token_id", "bos_token_id",
         "tie_word_embeddings")  # fmt: skip


class TextKeys(msgspec.Struct, frozen=True):
    text_config: dict[str, Any]


@dataclass(frozen=True)
class _Text:
    """A text model: its architecture, and keys that files leave out."""

    architecture: str
    keys: type[Keys]
    declare: Callable[[Found[Any]], ModelConfig]
    defaults: Mapping[str, Any]

    def read(self, found: Found[Any]) -> ModelConfig:
        """The text model's part of a configuration of `TextKeys`."""
        outer = {key: found.raw[key] for key in _KEPT if found.raw.get(key) is not None}
        raw = {**self.defaults, **outer, **found.keys.text_config}
        raw["architectures"] = [self.architecture]
        config = self.declare(Found(shaped(raw, self.keys, found.source), raw, found.source))
        return replace(config, layout=_NESTED)


_GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
}
_MISTRAL = {"model_type": "mistral"}

gemma3_text = _Text("Gemma3ForCausalLM", Gemma3Keys, gemma3, _GEMMA3).read
llama4_text = _Text("Llama4ForCausalLM", Llama4Keys, llama4, {}).read
mistral3_text = _Text("MistralForCausalLM", Keys, windowed, _MISTRAL).read
