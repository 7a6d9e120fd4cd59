"""The sampling operations of the C++ extension, typed; see `extension`."""

from __future__ import annotations

from torch import Tensor

try:
    from hagane.kernels import _cpu  # type: ignore[attr-defined,unused-ignore]
except ImportError:  # built without a C++ compiler
    _cpu = None


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    top_k: Tensor,
    tokens: Tensor,
) -> None:
    """float32 logits [rows, vocab], parameters float64 and int64 [rows] -> int64 [rows, draws]."""
    _cpu.sample(
        logits=logits, temperature=temperature, top_p=top_p, min_p=min_p, uniform=uniform,
        top_k=top_k, draws=tokens.shape[1], tokens=tokens,
    )  # fmt: skip


def heaviest(
    logits: Tensor, sources: Tensor, temperature: Tensor, found: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Rows int64 `sources` of float32 logits -> tokens and weights [sources, count], totals."""
    _cpu.heaviest(
        logits=logits, rows=len(sources), count=found[0].shape[1], sources=sources,
        temperature=temperature, tokens=found[0], weights=found[1], totals=found[2],
    )  # fmt: skip


def restrict(logits: Tensor, out: Tensor, sources: Tensor, allowed: Tensor) -> None:
    """Rows int64 `sources` of float32 [rows, vocab], -inf where bits uint8 `allowed` are 0."""
    _cpu.restrict(logits=logits, out=out, sources=sources, allowed=allowed)


def argmax(logits: Tensor, tokens: Tensor, finite: Tensor) -> None:
    """float32 logits [rows, vocab] -> int64 tokens and bool finite, [rows] each."""
    _cpu.argmax(logits=logits, tokens=tokens, finite=finite)
