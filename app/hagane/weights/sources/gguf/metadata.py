"""What a GGUF file says about its model, checked where it is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from hagane.weights.sources.gguf.file import GGUFModel


class Metadata:
    """A file's metadata under its architecture's prefix, with errors that name file and key."""

    def __init__(self, model: GGUFModel) -> None:
        self.model = model
        self.file = model.metadata
        self.architecture = self._text("general.architecture")

    def _text(self, key: str) -> str:
        value = self.file.get(key)
        if not isinstance(value, str):
            raise self.file.error(f"has no text in {key}, got {value!r}")
        return value

    def get(self, key: str) -> Any:
        """The value of ARCHITECTURE.key, or None."""
        return self.file.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer. An array, one value a layer, must hold the same value throughout."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise self.file.error(
                f"has no positive integer in {self.architecture}.{key}, got {value!r}"
            )
        return value

    def count(self, key: str) -> int:
        """An integer from 0 on; 0 where there is none."""
        value = self.get(key)
        value = 0 if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise self.file.error(f"has no count in {self.architecture}.{key}, got {value!r}")
        return value

    def flag(self, key: str) -> bool:
        """Whether something is so; not, where there is nothing."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool | int):
            raise self.file.error(f"has no flag in {self.architecture}.{key}, got {value!r}")
        return bool(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.file.error(
                f"has no positive number in {self.architecture}.{key}, got {value!r}"
            )
        return float(value)

    def layers(self) -> int:
        """The number of layers, not more than there are tensors for.

        Those that guess further tokens come last, and do not count.
        """
        count = self.integer("block_count") - self.count("nextn_predict_layers")
        last = f"blk.{count - 1}.attn_output.weight"
        if not self.has(last):
            raise self.file.error(
                f"has {count} layers by {self.architecture}.block_count, but no tensor {last!r}"
            )
        return count

    def head_dim(self, hidden: int, heads: int, kv_heads: int) -> int:
        """Features of a head, as many as the rows of the first query matrix are for."""
        size = self.integer("attention.key_length", max(1, hidden // heads))
        # Of latent attention the other key counts what is cached.
        size = self.integer("attention.key_length_mla", size)
        fused = self.has("blk.0.attn_qkv.weight")
        tensor, count = "blk.0.attn_q.weight", heads
        if self.has("blk.0.attn_q_b.weight"):
            tensor = "blk.0.attn_q_b.weight"
        if fused:
            tensor, count = "blk.0.attn_qkv.weight", heads + 2 * kv_heads
        rows = self.rows(tensor)
        if size * count != rows:
            raise self.file.error(
                f"has {count} heads of {size} features by its metadata, but {rows} rows of "
                f"{tensor!r}"
            )
        return size

    def rows(self, tensor: str) -> int:
        """The first dimension of a tensor that every model has."""
        if tensor not in self.model.tensors:
            raise self.file.error(f"has no tensor {tensor!r}")
        return self.model.tensors[tensor][1].shape[0]

    def floats(self, tensor: str, count: int) -> list[float]:
        """The numbers of a float32 tensor that only repeats the configuration."""
        self.rows(tensor)
        file, info = self.model.tensors[tensor]
        if info.type.name != "F32" or info.shape != (count,):
            raise file.error(f"has {tensor} of shape {list(info.shape)} in {info.type.name}")
        values: list[float] = np.frombuffer(file.data, "<f4", count, info.start).tolist()
        return values

    def longrope(self, turned: int) -> dict[str, Any]:
        """Phi-3's scaling, whose divisors of short and long contexts are tensors."""
        scaling: dict[str, Any] = {
            "rope_type": "longrope",
            "short_factor": self.floats("rope_factors_short.weight", turned // 2),
            "long_factor": self.floats("rope_factors_long.weight", turned // 2),
            "original_max_position_embeddings": self.integer(
                "rope.scaling.original_context_length"
            ),
        }
        if self.get("rope.scaling.attn_factor") is not None:
            scaling["attention_factor"] = self.number("rope.scaling.attn_factor")
        return scaling

    def has(self, tensor: str) -> bool:
        return tensor in self.model.tensors
