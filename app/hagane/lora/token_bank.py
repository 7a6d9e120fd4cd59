"""Serve rows of the embedding and the head that adapters replace, next to rows of other adapters.

A step in which some adapter has such rows looks tokens up before it is recorded, and corrects its
logits after it; other steps pay nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.kernels.backend import Operations
from hagane.lora.config import EMBEDDING, HEAD
from hagane.lora.files import Adapter, TokenRows
from hagane.models.decoder import Transformer
from hagane.models.formats.dense import DenseEmbedding
from hagane.models.serving_layers import for_serving
from hagane.system.errors import ModelError


@dataclass(frozen=True, eq=False)
class _Table:
    """A small embedding of the new rows, in the backend's layout; `ids` int64 [n] ascend."""

    ids: Tensor
    layer: nn.Module


PackedRows = Mapping[str, _Table]


class TokenBank:
    """The new rows of a model's adapters, by slot."""

    def __init__(
        self, model: Transformer, dtype: torch.dtype, device: torch.device, operations: Operations
    ) -> None:
        self._model, self._dtype, self._device = model, dtype, device
        self._operations = operations
        self._slots: dict[int, PackedRows] = {}

    def size(self, adapter: Adapter) -> int:
        """Bytes of the packed rows and their ids; the native kernels fill blocks of rows up."""
        return sum(self._bytes(*rows.values.shape) for rows in adapter.tokens.values())

    def _bytes(self, rows: int, features: int) -> int:
        values = self._dtype.itemsize * rows * features
        if self._operations is cpu:
            values = cpu.dense_bytes(rows, features, self._dtype)
        return values + torch.int64.itemsize * rows

    def require(self, adapter: Adapter) -> None:
        """Raises ModelError where the model's head is more than a product, or not its own."""
        config = self._model.config
        if adapter.tokens and (config.head_bias or not config.declared):
            raise ModelError(
                "the adapter replaces rows of the head (trainable_token_indices), which is not "
                "supported for this model: merge it into its base with `hagane merge`"
            )

    @torch.no_grad()
    def pack(self, adapter: Adapter) -> PackedRows:
        """Lay out the rows of `adapter`; may run in another thread while steps run."""
        packed = {name: self._table(rows) for name, rows in adapter.tokens.items()}
        if EMBEDDING in packed and self._model.config.tie_word_embeddings:
            packed[HEAD] = packed[EMBEDDING]
        return packed

    def _table(self, rows: TokenRows) -> _Table:
        ids, order = torch.tensor(rows.ids).sort()
        layer = DenseEmbedding(*rows.values.shape)
        values = rows.values[order].to(self._device, self._dtype)
        layer.weight = nn.Parameter(values, requires_grad=False)
        return _Table(ids.to(self._device), for_serving(layer, self._operations, self._dtype))

    def place(self, slot: int, rows: PackedRows) -> None:
        """Between two steps."""
        self._slots.pop(slot, None)
        if rows:
            self._slots[slot] = rows

    def clear(self, slot: int) -> None:
        """Between two steps."""
        self._slots.pop(slot, None)

    def holds(self, slots: Iterable[int] | None) -> bool:
        """Whether one of these adapters has rows of its own."""
        return bool(self._slots) and not self._slots.keys().isdisjoint(slots or ())

    def embed(self, ids: Tensor, slots: Tensor) -> Tensor:
        """int64 ids [tokens] of adapters `slots` int32 [tokens] -> [tokens, hidden].

        As the embedding gives them: a family's scale is not in it.
        """
        out: Tensor = self._model.model.embed_tokens(ids)
        for table, rows in self._tables(EMBEDDING, slots):
            places = torch.searchsorted(table.ids, ids[rows]).clamp_max_(len(table.ids) - 1)
            hits = table.ids[places] == ids[rows]
            if hits.any():
                out[rows[hits]] = table.layer(places[hits]).to(out.dtype)
        return out

    def score(self, hidden: Tensor, slots: Tensor, logits: Tensor) -> None:
        """Correct `logits` float32 [n, vocab] of hidden states [n, hidden] in place."""
        config = self._model.config
        for table, rows in self._tables(HEAD, slots):
            scores: Tensor = table.layer.logits(hidden[rows].contiguous())  # type: ignore[operator]
            if config.logit_cap or config.logit_scale != 1.0:
                scores = self._operations.softcap(scores, config.logit_scale, config.logit_cap)
            logits[rows[:, None], table.ids] = scores

    def _tables(self, name: str, slots: Tensor) -> Iterator[tuple[_Table, Tensor]]:
        """Each adapter's table of that name, with the int64 rows that are its own."""
        for slot, packed in self._slots.items():
            rows = (slots == slot).nonzero()[:, 0]
            if name in packed and len(rows):
                yield packed[name], rows
