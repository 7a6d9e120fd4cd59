"""The operations of latent attention of the C++ extension, typed; see `extension`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hagane.kernels.cpu.extension import Weight

try:
    from hagane.kernels import _cpu  # type: ignore[attr-defined,unused-ignore]
except ImportError:  # built without a C++ compiler
    _cpu = None


def latent_heads(
    q: Tensor,
    kv: Tensor,
    shared: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    interleaved: bool,
) -> None:
    """q [tokens, heads * width] in place, k and v like it; kv and shared as in `reference`."""
    _cpu.latent_heads(
        q=q, kv=kv, shared=shared, k=k, v=v, heads=heads, interleaved=int(interleaved), cos=cos,
        sin=sin,
    )  # fmt: skip


def head_products(weights: Sequence[Weight], x: Tensor, out: Tensor) -> None:
    """x [tokens, heads * width] -> out [tokens, heads * room], a matrix for each head.

    Raises ValueError unless all are unquantized and of one shape.
    """
    _cpu.head_products(weights=weights, x=x, out=out)


def latent_keys(
    q: Tensor,
    latent: Tensor,
    shared: Tensor,
    wide: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    interleaved: bool,
) -> None:
    """As in `operations`: the ends of the heads of `wide`, and k [tokens, rank + turned]."""
    _cpu.latent_keys(
        q=q, latent=latent, shared=shared, wide=wide, k=k, heads=heads,
        interleaved=int(interleaved), cos=cos, sin=sin,
    )  # fmt: skip


def narrow_heads(x: Tensor, out: Tensor, heads: int) -> None:
    """The beginnings of the heads of x [tokens, heads * width] -> out [tokens, heads * less]."""
    _cpu.narrow_heads(x=x, out=out, heads=heads)
