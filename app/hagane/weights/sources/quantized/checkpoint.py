"""A directory that another program quantized, as a source of weights."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from hagane.models.stored import StoredFormat
from hagane.system.errors import ModelError
from hagane.weights.sources.quantized.layouts import LAYOUTS, LayerTensors, Layout, Matrix
from hagane.weights.sources.safetensors import SafetensorsCheckpoint

# Activations are quantized here as they come, and the KV cache by its own scales.
_UNUSED = ("input_scale", "input_zero_point", "output_scale", "output_zero_point",
           "activation_scale", "k_scale", "v_scale", "q_scale")  # fmt: skip


class QuantizedCheckpoint:
    """The matrices that a format has quantized, under the names of the floats that they were.

    source = QuantizedCheckpoint(SafetensorsCheckpoint(path), config.stored)
    rows = source.read("model.layers.0.mlp.down_proj.weight", (896, 4864))
    """

    def __init__(self, checkpoint: SafetensorsCheckpoint, form: StoredFormat) -> None:
        self.checkpoint, self.form = checkpoint, form

    def shape(self, name: str) -> tuple[int, ...] | None:
        found = self._layout(name)
        return found[0].shape(found[1], self.form) if found else self.checkpoint.shape(name)

    def others(self, names: Collection[str]) -> list[str]:
        known = set(names)
        for name in names:
            if found := self._layout(name):
                layout, module = found
                known |= {f"{module.name}.{kind}" for kind in layout.kinds}
        left = self.checkpoint.others(known)
        return [name for name in left if not name.endswith(_UNUSED) and not self._is_void(name)]

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor | Matrix:
        """The tensor `name`. Raises ModelError if it is missing or not of `shape`."""
        found = self._layout(name)
        if found is None:
            return self.checkpoint.read(name, shape)
        layout, module = found
        stored = layout.shape(module, self.form)
        if stored != shape:
            raise ModelError(
                f"{self.checkpoint.directory}: {module.name} is a matrix of {list(stored)}, the "
                f"config asks for {list(shape)}"
            )
        return layout.read(module, (shape[0], shape[1]), self.form)

    def _layout(self, name: str) -> tuple[Layout, LayerTensors] | None:
        if not name.endswith(".weight"):
            return None
        module = LayerTensors(self.checkpoint, name.removesuffix(".weight"))
        fitting = (layout for layout in LAYOUTS[self.form.method] if layout.has(module))
        layout = next(fitting, None)
        return None if layout is None else (layout, module)

    def _is_void(self, name: str) -> bool:
        """Whether it is a bias of zeros: old versions of AutoGPTQ gave one to every layer."""
        if not name.endswith(".bias") or self._layout(f"{name.removesuffix('bias')}weight") is None:
            return False
        return not self.checkpoint.read(name, self.checkpoint.shape(name) or ()).any()
