"""The operations of the forward pass, each named once with one signature.

Floating tensors share one dtype (float32, bfloat16 or float16) unless said otherwise; `tokens` is
the number of rows of the flat ragged batch. What each operation does is said in `reference`.

| backend | runs |
|---|---|
| `reference` | on any device through torch's operators; differentiable |
| `cpu` | on the CPU in float32 and bfloat16 through Hagane's own kernels; serving only |
| `training` | as `cpu`, differentiable by its inputs alone: for adapters on frozen weights |
| `served` | as `training`, with the bits of `cpu`: to learn from what was answered |
| `Pretraining` | as `cpu`, differentiable by weights too, in float32 or over float32 weights |
| `cuda` | on CUDA devices through Hagane's own Triton kernels; serving only |
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from hagane.kernels import cpu, reference
from hagane.kernels.layout import PagedLayout
from hagane.kernels.sampling import SamplingTensors

logger = logging.getLogger(__name__)


class Operations(Protocol):
    """A backend's operations for serving; `reference` documents each of them.

    A model gets its backend when it is made. All backends accept and return the same shapes and
    dtypes. Example:

        operations = choose(torch.device("cpu"), torch.bfloat16)
        x = operations.rms_norm(x, weight, 1e-6)
    """

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        offset: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor: ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor: ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor: ...

    def activate(self, x: Tensor, kind: str, *, gated: bool) -> Tensor: ...

    def scaled_add(self, x: Tensor, factor: float, residual: Tensor | None = None) -> Tensor: ...

    def route(
        self,
        logits: Tensor,
        correction: Tensor | None,
        *,
        chosen: int,
        score: Literal["softmax", "sigmoid"] = "softmax",
        normalised: bool = True,
        floor: float = 1e-20,
        scale: float = 1.0,
        groups: int = 1,
        chosen_groups: int = 1,
        group_best: int = 2,
        jitter: float = 0.0,
    ) -> tuple[Tensor, Tensor]: ...

    def gate_rows(self, x: Tensor, scores: Tensor) -> Tensor: ...

    def softcap(self, logits: Tensor, scale: float, cap: float) -> Tensor: ...

    def rope_tables(
        self, positions: Tensor, frequencies: Tensor, magnitude: float
    ) -> tuple[Tensor, Tensor]: ...

    def apply_rope(
        self,
        qkv: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        *,
        heads: int,
        kv_heads: int,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        center: Tensor | None = None,
        offset: float = 0.0,
        interleaved: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def latent_heads(
        self,
        q: Tensor,
        kv: Tensor,
        shared: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        heads: int,
        interleaved: bool,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def narrow_heads(self, x: Tensor, heads: int, features: int) -> Tensor: ...

    def allocate_cache(
        self,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        shared: bool = False,
    ) -> tuple[Tensor, Tensor]: ...

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: tuple[Tensor, Tensor],
        layout: PagedLayout,
        *,
        window: int | None,
        scale: float | None = None,
        cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> Tensor: ...

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]: ...

    def heaviest(
        self, logits: Tensor, rows: Tensor, temperature: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def restrict(self, logits: Tensor, rows: Tensor, allowed: Tensor) -> Tensor: ...

    def sample(self, logits: Tensor, sampling: SamplingTensors) -> Tensor: ...

    def samples(self, logits: Tensor, sampling: SamplingTensors, draws: int) -> Tensor: ...


class Differentiable(Operations, Protocol):
    """A backend with gradients, and the operations that only training needs.

    `reference`, `training`, `served` and `Pretraining` are such backends. Example:

        out = reference.causal_attention(q, k, v, rows=2, window=None)
        out.sum().backward()
    """

    def causal_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        rows: int,
        window: int | None,
        scale: float | None = None,
        cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> Tensor: ...

    def sequence_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        lengths: Sequence[int],
        window: int | None,
        scale: float | None = None,
        cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> Tensor: ...

    def token_scores(
        self, logits: Tensor, targets: Tensor, *, gradients: bool
    ) -> tuple[Tensor, Tensor]: ...


def choose(device: torch.device, dtype: torch.dtype) -> Operations:
    """The fastest backend for serving on `device` in `dtype`."""
    if device.type == "cuda":
        return _choose_cuda()
    if dtype not in (torch.float32, torch.bfloat16):
        logger.warning("no native kernels for %s: torch's operators are slower", dtype)
        return reference
    if not cpu.available():
        logger.warning(
            "the native kernels were not built (no C++ compiler at installation): torch's "
            "operators are several times slower, and results depend on the batch"
        )
        return reference
    return cpu


def _choose_cuda() -> Operations:
    try:
        from hagane.kernels import cuda
    except ImportError as error:
        logger.warning("no Triton kernels (%s): torch's operators are several times slower", error)
        return reference
    return cuda
