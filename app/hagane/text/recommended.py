"""Good small models to begin with, by licence and size, and which of them fit this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hagane.system.weight_formats import WEIGHT_FORMATS

Task = Literal["chat", "code", "embeddings"]

# What a server takes beside its weights: its processes and the default KV cache.
_BESIDE_WEIGHTS = 2 << 30
# Best first: 8 bits lose next to nothing, 4 bits a little.
_FORMATS = ("none", "int8", "int4")


@dataclass(frozen=True)
class RecommendedModel:
    """A model of the hub. `parameters` is in billions, `languages` a few words."""

    name: str
    architecture: str
    parameters: float
    licence: str
    task: Task
    languages: str

    def weight_bytes(self, quantize: str) -> float:
        """The size of its weights when served with `quantize`, in bytes."""
        bits = 16.0 if quantize == "none" else WEIGHT_FORMATS[quantize].bits
        return self.parameters * 1e9 * bits / 8


RECOMMENDED = (
    RecommendedModel("Qwen/Qwen3-0.6B", "Qwen3ForCausalLM", 0.6, "Apache-2.0", "chat",
                     "100 languages, Japanese among them; reasons"),
    RecommendedModel("google/gemma-3-1b-it", "Gemma3ForCausalLM", 1.0, "Gemma", "chat", "English"),
    RecommendedModel("Qwen/Qwen3-1.7B", "Qwen3ForCausalLM", 1.7, "Apache-2.0", "chat",
                     "100 languages, Japanese among them; reasons"),
    RecommendedModel("llm-jp/llm-jp-3-1.8b-instruct3", "LlamaForCausalLM", 1.9, "Apache-2.0",
                     "chat", "Japanese, English"),
    RecommendedModel("HuggingFaceTB/SmolLM3-3B", "SmolLM3ForCausalLM", 3.1, "Apache-2.0", "chat",
                     "six European languages; reasons"),
    RecommendedModel("microsoft/Phi-4-mini-instruct", "Phi3ForCausalLM", 3.8, "MIT", "chat",
                     "23 languages, Japanese among them"),
    RecommendedModel("Qwen/Qwen3-4B-Instruct-2507", "Qwen3ForCausalLM", 4.0, "Apache-2.0", "chat",
                     "100 languages, Japanese among them"),
    RecommendedModel("Qwen/Qwen3-8B", "Qwen3ForCausalLM", 8.2, "Apache-2.0", "chat",
                     "100 languages, Japanese among them; reasons"),
    RecommendedModel("Qwen/Qwen3-14B", "Qwen3ForCausalLM", 14.8, "Apache-2.0", "chat",
                     "100 languages, Japanese among them; reasons"),
    RecommendedModel("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen2ForCausalLM", 1.5, "Apache-2.0",
                     "code", "programming languages, English"),
    RecommendedModel("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen2ForCausalLM", 7.6, "Apache-2.0",
                     "code", "programming languages, English"),
    RecommendedModel("sentence-transformers/all-MiniLM-L6-v2", "BertModel", 0.023, "Apache-2.0",
                     "embeddings", "English"),
    RecommendedModel("Qwen/Qwen3-Embedding-0.6B", "Qwen3ForCausalLM", 0.6, "Apache-2.0",
                     "embeddings", "100 languages, Japanese among them"),
)  # fmt: skip


def best_format(model: RecommendedModel, memory: int) -> str | None:
    """The most exact format in which a server of `memory` bytes holds the model, or None."""
    room = memory - _BESIDE_WEIGHTS
    return next((name for name in _FORMATS if model.weight_bytes(name) <= room), None)


def fast_choices(memory: int, bandwidth: float, speed: float) -> Iterator[tuple[str, str, float]]:
    """Chat models, largest first, that fit in `memory` bytes and answer fast enough.

    Yields (model, format, most tokens per second). Decoding reads every weight once a token, so
    that `bandwidth` (bytes per second) bounds it; `speed` is the least to accept.
    """
    chat = [model for model in RECOMMENDED if model.task == "chat"]
    for model in sorted(chat, key=lambda model: -model.parameters):
        for name in _FORMATS:
            size = model.weight_bytes(name)
            if size <= memory - _BESIDE_WEIGHTS and bandwidth / size >= speed:
                yield model.name, name, bandwidth / size
                break
