"""The C++ extension `_cpu`, typed; only this and its namesakes alongside import it.

Tensors go in by name. The extension reads their addresses, dtypes and shapes (arguments.h), and
raises TypeError or ValueError before anything runs. Results are in `out`, or as documented.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType

from torch import Tensor

try:
    from hagane.kernels import _cpu  # type: ignore[attr-defined,unused-ignore]
except ImportError:  # built without a C++ compiler
    _cpu = None

# Objects of the extension; they keep no tensor alive.
Weight = NewType("Weight", object)
LowRank = NewType("LowRank", object)
Bank = NewType("Bank", object)
Recording = NewType("Recording", object)
Experts = NewType("Experts", object)


def built() -> bool:
    """Whether the extension was compiled at installation."""
    return _cpu is not None


# Threads and instruction sets.


def select(name: str | None) -> str | None:
    """Use this instruction set, or the best one; returns its name, None if it is not here."""
    chosen: str | None = _cpu.select(name=name)
    return chosen


def start(cores: Sequence[int]) -> None:
    """Pin a thread to each core; the calling thread is the first of them."""
    _cpu.start(cores=cores)


def borrow(threads: int) -> bool:
    """Let the OpenMP runtime's threads do the work; False where it is not loaded."""
    borrowed: bool = _cpu.borrow(threads=threads)
    return borrowed


# Recordings.


def record() -> None:
    """Record the operations from now on instead of running them."""
    _cpu.record()


def recorded() -> Recording:
    """End the recording. Raises RuntimeError if none is being made."""
    return Recording(_cpu.recorded())


def replay(recording: Recording) -> None:
    _cpu.replay(recording=recording)


# Matrices.


def weight(
    *,
    kind: int,
    out_features: int,
    in_features: int,
    units: int,
    group: int,
    codes: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    input_scale: Tensor | None,
    rotation: int,
    bits: int = 0,
    zero: int = 0,
    minimum: Tensor | None = None,
) -> Weight:
    """A packed matrix as drawn in ops.h: codes int32, bias float32 [out, padded to 16]."""
    handle = _cpu.weight(
        format=kind, out_features=out_features, in_features=in_features, units=units, group=group,
        codes=codes, scale=scale, bias=bias, input_scale=input_scale, rotation=rotation, bits=bits,
        zero=zero, minimum=minimum,
    )  # fmt: skip
    return Weight(handle)


def order_inputs(weight: Weight, order: Tensor) -> None:
    """Let code i of a grouped matrix multiply input order[i], int32 [in], kept by the caller."""
    _cpu.order_inputs(weight=weight, order=order)


def low_rank(
    a: Weight, b: Tensor, first_line: Tensor, first_unit: Tensor, scale: Tensor | None
) -> LowRank:
    """A change as drawn in ops.h: b and its places int32, scale float32."""
    made = _cpu.low_rank(a=a, b=b, first_line=first_line, first_unit=first_unit, scale=scale)
    return LowRank(made)


def set_gain(change: LowRank, gain: Tensor) -> None:
    """Let `change` multiply its outputs by 1 + gain, float32 [blocks * 16], kept by the caller."""
    _cpu.set_gain(change=change, gain=gain)


def bank() -> Bank:
    return Bank(_cpu.bank())


def place(bank: Bank, slot: int, change: LowRank | None) -> None:
    _cpu.place(bank=bank, slot=slot, change=change)


def quantize(
    parts: Sequence[Tensor],
    *,
    bfloat16: bool,
    group: int,
    rotation: int,
    units: int,
    codes: Tensor,
    scale: Tensor,
) -> int:
    """Up to four float parts [rows, in], one under the other, to int8 (group 0) or int4.

    Weights are rounded to bfloat16 first if requested, and rotated in blocks of `rotation`
    unless 0. With units 0, codes are rows as they are stored, int8 [out, in] or uint8
    [out, in / 2], scale float32 [out] or bfloat16 [out, in / group]; else codes int32 and scale
    are packed as in `weight`. Returns the first row with NaN or an infinity, or -1.
    """
    named = {f"part{number}": part for number, part in enumerate(parts)}
    bad: int = _cpu.quantize(
        count=len(parts), **named, bf16=int(bfloat16), group=group, rotation=rotation,
        units=units, codes=codes, scale=scale,
    )  # fmt: skip
    return bad


def pack(rows: Tensor, row_bytes: int, units: int, lines: Tensor) -> None:
    """Rows as they are stored -> lines int32 of a packed matrix, `units` a row."""
    _cpu.pack(count=len(rows), row_bytes=row_bytes, units=units, rows=rows, lines=lines)


def pack_grouped(codes: Tensor, bits: int, lines: Tensor) -> None:
    """uint8 codes [out, in] -> lines int32 of a grouped matrix."""
    out_features, in_features = codes.shape
    _cpu.pack_grouped(
        out_features=out_features, in_features=in_features, bits=bits, codes=codes, lines=lines
    )


def find_nonfinite(x: Tensor) -> int:
    """The first row of float32 or bfloat16 x with NaN or an infinity, or -1."""
    bad: int = _cpu.find_nonfinite(x=x)
    return bad


def linear(
    weight: Weight,
    x: Tensor,
    out: Tensor,
    residual: Tensor | None,
    bank: Bank | None,
    slots: Tensor | None,
) -> None:
    """x [tokens, in] -> out [tokens, out]; residual contiguous like out, slots int32 [tokens]."""
    _cpu.linear(weight=weight, x=x, out=out, residual=residual, bank=bank, slots=slots)


def embed(weight: Weight, ids: Tensor, out: Tensor) -> None:
    """int64 ids [tokens] -> out [tokens, in]."""
    _cpu.embed(weight=weight, ids=ids, out=out)


# Between the matrices.


def row_norm(
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    offset: float,
    *,
    centered: bool,
) -> None:
    """x, out and residual [rows, features], weight and bias [features], of one dtype."""
    _cpu.row_norm(
        x=x, out=out, weight=weight, bias=bias, residual=residual, eps=eps, offset=offset,
        centered=int(centered),
    )  # fmt: skip


def experts(gate_up: Sequence[Weight], down: Sequence[Weight]) -> Experts:
    """The MLPs of a mixture. Raises ValueError unless all of them have one shape and format."""
    return Experts(_cpu.experts(gate_up=gate_up, down=down))


def mix_experts(
    experts: Experts,
    x: Tensor,
    out: Tensor,
    chosen: Tensor,
    weights: Tensor,
    residual: Tensor | None,
    kind: str,
    *,
    gated: bool,
) -> None:
    """x, out and residual [rows, features]; chosen int32 and weights float32 [rows, chosen]."""
    _cpu.mix_experts(
        experts=experts, x=x, out=out, chosen=chosen.shape[1], numbers=chosen, weights=weights,
        residual=residual, kind=_ACTIVATIONS[kind], gated=int(gated),
    )  # fmt: skip


def route(
    logits: Tensor,
    correction: Tensor | None,
    numbers: Tensor,
    weights: Tensor,
    *,
    sigmoid: bool,
    normalised: bool,
    floor: float,
    scale: float,
    groups: int,
    chosen_groups: int,
    group_best: int,
) -> None:
    """float32 logits [rows, experts] -> int32 numbers and float32 weights [rows, chosen]."""
    _cpu.route(
        logits=logits, correction=correction, chosen=numbers.shape[1], sigmoid=int(sigmoid),
        normalised=int(normalised), floor=floor, scale=scale, groups=groups,
        chosen_groups=chosen_groups, group_best=group_best, numbers=numbers, weights=weights,
    )  # fmt: skip


def route_sparsely(
    logits: Tensor, numbers: Tensor, weights: Tensor, *, jitter: float, scale: float
) -> None:
    """float32 logits [rows, experts] -> int32 numbers and float32 weights [rows, chosen]."""
    _cpu.route_sparsely(
        logits=logits, chosen=numbers.shape[1], jitter=jitter, scale=scale, numbers=numbers,
        weights=weights,
    )  # fmt: skip


def gate_rows(x: Tensor, out: Tensor, scores: Tensor) -> None:
    """x and out [rows, features], scores float32 [rows, 1]."""
    _cpu.gate_rows(x=x, out=out, scores=scores)


_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "clamped": 3}


def activate(x: Tensor, out: Tensor, kind: str, *, gated: bool) -> None:
    """x [rows, features], twice as wide if gated -> out [rows, features]."""
    _cpu.activate(x=x, out=out, kind=_ACTIVATIONS[kind], gated=int(gated))


def scaled_add(x: Tensor, out: Tensor, residual: Tensor | None, factor: float) -> None:
    """All [rows, features], of one dtype."""
    _cpu.scaled_add(x=x, out=out, residual=residual, factor=factor)


def softcap(logits: Tensor, scale: float, cap: float) -> None:
    """float32 [rows, vocab] in place; cap 0 is none."""
    _cpu.softcap(logits=logits, scale=scale, cap=cap)


def silu_and_mul(gate_up: Tensor, out: Tensor) -> None:
    """gate_up [rows, 2 * features] -> out [rows, features]."""
    _cpu.silu_and_mul(gate_up=gate_up, out=out)


def gather(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """Rows int64 [count] of x [tokens, ...] -> out [count, ...]."""
    _cpu.gather(x=x, out=out, rows=rows)


def rope_tables(
    positions: Tensor, frequencies: Tensor, magnitude: float, cos: Tensor, sin: Tensor
) -> None:
    """int64 [tokens], float32 [n] -> cos and sin, float32 [tokens, n]."""
    _cpu.rope_tables(
        cos=cos, sin=sin, positions=positions, frequencies=frequencies, magnitude=magnitude
    )


def apply_rope(
    qkv: Tensor,
    heads: int,
    kv_heads: int,
    cos: Tensor | None,
    sin: Tensor | None,
    norms: tuple[Tensor, Tensor] | None,
    center: Tensor | None,
    eps: float,
    offset: float = 0.0,
    *,
    interleaved: bool = False,
) -> None:
    """qkv [tokens, (heads + 2 * kv_heads) * head_dim] in place; center [kv_heads, head_dim]."""
    q_norm, k_norm = (None, None) if norms is None else norms
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    _cpu.apply_rope(
        qkv=qkv, heads=heads, kv_heads=kv_heads, rotated=0 if cos is None else 2 * cos.shape[1],
        interleaved=int(interleaved), whole=int(q_norm is not None and len(q_norm) != head_dim),
        cos=cos, sin=sin, q_norm=q_norm, k_norm=k_norm, center=center, eps=eps, offset=offset,
    )  # fmt: skip


def store(
    k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], slots: Tensor, block_size: int
) -> None:
    """k, v [tokens, kv_heads, head_dim] into the cache at slots int64 [tokens].

    Shared values are narrower, and not stored.
    """
    keys, values = cache
    _cpu.store(k=k, v=v, keys=keys, values=values, slots=slots, block_size=block_size)


def paged_attention(
    q: Tensor,
    out: Tensor,
    cache: tuple[Tensor, Tensor],
    *,
    kv_heads: int,
    block_size: int,
    block_tables: Tensor,
    context_lengths: Tensor,
    query_starts: Tensor,
    window: int,
    scale: float,
    cap: float,
    sinks: Tensor | None,
) -> None:
    """q [tokens, heads, head_dim] -> out [tokens, heads * value_dim]; window and cap 0 are none.

    int32: block_tables [sequences, blocks], context_lengths [sequences], query_starts
    [sequences + 1]. Sinks are float32 [heads].
    """
    named = {
        "q": q, "out": out, "keys": cache[0], "values": cache[1], "kv_heads": kv_heads,
        "head_dim": q.shape[2], "block_size": block_size, "sequences": len(context_lengths),
        "block_tables": block_tables, "context_lengths": context_lengths,
        "query_starts": query_starts, "window": window, "scale": scale, "cap": cap,
    }  # fmt: skip
    if sinks is None:
        _cpu.paged_attention(**named)
    else:
        _cpu.sink_attention(**named, sinks=sinks)


def prefetch(
    cache: tuple[Tensor, Tensor],
    *,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    block_tables: Tensor,
    context_lengths: Tensor,
) -> None:
    """Have products before the next attention fetch what it will read."""
    _cpu.prefetch(
        keys=cache[0], values=cache[1], kv_heads=kv_heads, head_dim=head_dim,
        block_size=block_size, sequences=len(context_lengths), block_tables=block_tables,
        context_lengths=context_lengths,
    )  # fmt: skip
