"""Linear layers that serve adapters: each row's adapter changes the base's result.

Rows without an adapter get the base's bits. Training has layers of its own for the adapter that it
makes; here many that are finished share a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.kernels.arena import Arena
from hagane.kernels.cpu.low_rank import NativeBank
from hagane.kernels.low_rank import MOST_TENSORS, AdapterRows, Bank, Part, TorchBank
from hagane.lora.absorbed import AbsorbedBank
from hagane.lora.division import Division
from hagane.lora.dora import with_gain
from hagane.lora.files import Adapter
from hagane.lora.token_bank import PackedRows, TokenBank
from hagane.models.decoder import Transformer
from hagane.models.latent_heads import AbsorbedHeads
from hagane.models.serving_layers import CudaLinear, Packed
from hagane.models.spec import parts_of, projections
from hagane.system.errors import ModelError
from hagane.weights.matrices import MatrixReader

if TYPE_CHECKING:
    from hagane.kernels.cuda.low_rank import CudaBank


class Adapted(nn.Module):
    """Any kind of linear layer, changed by torch's operators or by the Triton kernels."""

    def __init__(self, base: nn.Module, bank: TorchBank | CudaBank) -> None:
        super().__init__()
        self.base, self.bank = base, bank

    def forward(
        self, x: Tensor, residual: Tensor | None = None, rows: AdapterRows | None = None
    ) -> Tensor:
        out: Tensor = self.base(x, residual)
        return out if rows is None else self.bank.add(out, x, rows)


class PackedAdapted(nn.Module):
    """Any kind of linear layer, changed by the native kernels before they round."""

    def __init__(self, weight: cpu.PackedWeight, bank: NativeBank) -> None:
        super().__init__()
        self.weight, self.bank = weight, bank

    def forward(
        self, x: Tensor, residual: Tensor | None = None, rows: AdapterRows | None = None
    ) -> Tensor:
        changes = None if rows is None else (self.bank.handle, rows.slots)
        return cpu.linear(x, self.weight, residual=residual, changes=changes)


@dataclass(frozen=True)
class PackedAdapter:
    """An adapter's changes by the model's layers, ready to be placed, and its new rows."""

    changes: Mapping[str, Any]
    digest: str
    tokens: PackedRows


class AdapterBanks:
    """Makes a serving model's linear layers adaptable, and holds the banks of all of them."""

    def __init__(
        self,
        model: Transformer,
        dtype: torch.dtype,
        device: torch.device,
        open_matrices: Callable[[], MatrixReader] | None = None,
        division: Division | None = None,
    ) -> None:
        """`open_matrices` gives the model's own matrices, by which `resolve` measures DoRA's.

        Of a model of which this is a part, `division` takes the changes apart.
        """
        self._division, self._open_matrices = division, open_matrices
        self.config = model.config if division is None else division.whole
        self.tokens = TokenBank(model, dtype, device, model.operations)
        self._banks: dict[str, Bank] = {}
        self._adaptable = {p: spec for p, spec in projections(model.config) if spec.adaptable}
        for path, projection in self._adaptable.items():
            parent, _, leaf = f"model.{path}".rpartition(".")
            owner = model.get_submodule(parent)
            base = owner.get_submodule(leaf)
            layer: Adapted | PackedAdapted
            if isinstance(base, AbsorbedHeads):
                self._banks[path] = AbsorbedBank(base)
                continue
            if isinstance(base, Packed):
                layer = PackedAdapted(base.weight, NativeBank(base.weight))
            elif isinstance(base, CudaLinear):
                layer = Adapted(base, _cuda_bank(projection.rows, dtype, device))
            else:
                layer = Adapted(base, TorchBank(dtype, device, partial(_product, base)))
            setattr(owner, leaf, layer)
            self._banks[path] = layer.bank

    def resolve(self, adapter: Adapter) -> Adapter:
        """`adapter`, with the gains of DoRA, by this model's weights; may run in another thread.

        Raises ModelError where these banks have no gains, or no place for new rows.
        """
        self.tokens.require(adapter)
        if adapter.tokens and self._division is not None:
            raise ModelError(
                "adapters that replace rows of the embedding (trainable_token_indices) are not "
                "served by a model in parts: merge it into its base with `hagane merge`"
            )
        if not adapter.config.dora:
            return adapter
        if self._open_matrices is None:
            raise ModelError(
                "DoRA adapters (use_dora) are served on a CPU only: merge it into its base with "
                "`hagane merge`"
            )
        matrices, changes = self._open_matrices(), dict(adapter.changes)
        for path, projection in projections(self.config):
            parts = parts_of(path, projection) if projection.adaptable else {}
            if changes.keys().isdisjoint(parts):
                continue
            if isinstance(self._banks.get(path), AbsorbedBank):
                raise ModelError(
                    f"DoRA (use_dora) of {path} is not served, where keys are cached as latent "
                    "vectors: merge it into its base with `hagane merge`"
                )
            rows = matrices.read(path).split(list(parts.values()))
            for part, weight in zip(parts, rows, strict=True):
                if part in changes:
                    changes[part] = with_gain(changes[part], weight)
        return replace(adapter, changes=changes)

    def size(self, adapter: Adapter) -> int:
        """Bytes of the packed adapter."""
        parts = self._group(adapter)
        layers = sum(self._banks[path].size(group) for path, group in parts.items())
        return layers + self.tokens.size(adapter)

    def pack(self, adapter: Adapter) -> PackedAdapter:
        """Pack an adapter that is resolved; may run in another thread while steps run."""
        parts = self._group(adapter)
        size = sum(self._banks[path].size(group) for path, group in parts.items())
        arena = Arena(Arena.room(size, MOST_TENSORS * len(parts)))
        changes = {path: self._banks[path].pack(group, arena) for path, group in parts.items()}
        return PackedAdapter(changes, adapter.digest, self.tokens.pack(adapter))

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        """Put an adapter into `slot`, between two steps; later steps may use it."""
        for path, change in adapter.changes.items():
            self._banks[path].place(slot, change)
        self.tokens.place(slot, adapter.tokens)

    def clear(self, slot: int) -> None:
        """Empty `slot`, between two steps, when no step uses it any more."""
        for bank in self._banks.values():
            bank.place(slot, None)
        self.tokens.clear(slot)

    def _group(self, adapter: Adapter) -> dict[str, list[Part]]:
        if self._division is not None:
            adapter = self._division.own(adapter)
        groups: dict[str, list[Part]] = {}
        for path, projection in self._adaptable.items():
            first = 0
            for part, rows in parts_of(path, projection).items():
                change = adapter.changes.get(part)
                if change is not None:
                    placed = Part(first, change.a, change.b, change.scale, change.gain)
                    groups.setdefault(path, []).append(placed)
                first += rows
        return groups


def _product(base: nn.Module, x: Tensor) -> Tensor:
    """W x without bias."""
    out: Tensor = base(x)
    bias = getattr(base, "bias", None)
    return out if bias is None else out - bias


def _cuda_bank(out_features: int, dtype: torch.dtype, device: torch.device) -> CudaBank:
    # Imported here, since importing Triton takes a while.
    from hagane.kernels.cuda.low_rank import CudaBank

    return CudaBank(out_features, dtype, device)
