"""Every operation of serving through Hagane's own C++ kernels, for the CPU.

Results are batch-invariant: a row's result has the same bits alone, in any batch, as prefill or
as decode, because every sum runs in an order that depends on the row alone.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hagane.kernels.arena import Arena, Arenas
from hagane.kernels.drawing import Cuts
from hagane.kernels.layout import PagedLayout
from hagane.kernels.recording import Workspace
from hagane.system.machine import usable_cores

try:
    from hagane.kernels import _cpu  # type: ignore[attr-defined,unused-ignore]
except ImportError:
    _cpu = None

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_F32, _BF16, _INT8, _INT4 = range(4)
# What a format multiplies its weights by: inputs as they are, or quantized per token.
_INPUTS = (torch.float32, torch.bfloat16, torch.int8, torch.int8)
LANES = 16  # outputs that a line of a packed matrix holds

# Where the matrices of models lie.
_arenas = Arenas(1 << 26)
# Where results go while a recording is made; else torch's allocator has room for them.
_workspace: Workspace | None = None


def available() -> bool:
    """Whether the extension was built; it needs a C++ compiler at installation."""
    return _cpu is not None


def instruction_set() -> str:
    """The best one that this machine runs: amx, avx512, avx2 or generic."""
    chosen: str = _cpu.select(None)
    return chosen


def start(threads: int | None = None, instruction_set: str | None = None) -> str:
    """Pin one thread to each of the cores that this process may use, or to `threads` of them.

    Returns the instruction set in use: the best one here, or the one asked for. Raises ValueError
    if that is not to be had.
    """
    chosen: str | None = _cpu.select(instruction_set)
    if chosen is None:
        raise ValueError(f"this machine cannot run {instruction_set} kernels")
    cores = usable_cores()
    _cpu.start(*cores[: threads or len(cores)])
    _keep_freed_memory()
    return chosen


def start_beside_torch(threads: int | None = None) -> None:
    """`start` for training: torch's products run in between, so its own threads do all the work.

    A second pool would wait for the cores on which torch's threads spin, a millisecond or so for
    every operation.
    """
    start(threads)
    _cpu.borrow(threads or len(usable_cores()))


def record(step: Callable[[], Tensor], workspace: Workspace) -> Callable[[], Tensor]:
    """A function that runs the kernels of `step` and returns its result: no Python in between.

    All that `step` computes must come from this module, from tensors that stay where they are: it
    is called, but nothing is computed before the function is. What that returns lies in the
    workspace, until another recording of it runs.
    """
    global _workspace
    _workspace = workspace
    _cpu.record()
    try:
        result = step()
    finally:
        _workspace = None
        kernels = _cpu.recorded()
    # One tensor for all replays: to make one takes torch a tenth of a millisecond behind kernels
    # that have emptied the caches.
    alias = workspace.alias(result)

    def replay() -> Tensor:
        _cpu.replay(kernels)
        return alias

    return replay


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    if _workspace is None:
        return torch.empty(*shape, dtype=dtype)
    return _workspace.empty(*shape, dtype=dtype)


def _keep_freed_memory() -> None:
    """Every step allocates the same buffers: the C library shall not return them in between.

    The page faults of getting them back cost more than the smaller operations themselves.
    """
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        for parameter in (trim_threshold, mmap_threshold):
            ctypes.CDLL(None).mallopt(parameter, 1 << 30)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix [out, in] in the kernels' layout (drawn in cpu/ops.h).

    `inputs` is the dtype that the kernels bring its inputs to.
    """

    inputs: torch.dtype
    out_features: int
    in_features: int
    tensors: tuple[Tensor, ...]
    handle: Any

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def pack_dense(
    weight: Tensor, bias: Tensor | None = None, arena: Arena | None = None
) -> PackedWeight:
    """Float32 or bfloat16 [out, in]."""
    kind = _F32 if weight.dtype == torch.float32 else _BF16
    return _pack(kind, weight, weight.shape[1], None, bias, 0, arena=arena)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float [out, in] -> int8 codes and one float32 scale per row [out], symmetric."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp_min(1e-12) / 127
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def pack_int8(
    codes: Tensor, scale: Tensor, bias: Tensor | None = None, arena: Arena | None = None
) -> PackedWeight:
    """int8 [out, in] with one scale per output [out]."""
    return _pack(_INT8, codes, codes.shape[1], _pad(scale.float(), 0), bias, 0, arena=arena)


def pack_int4(
    codes: Tensor, scale: Tensor, group_size: int, bias: Tensor | None = None
) -> PackedWeight:
    """uint8 [out, in / 2], stored as `Int4` says, with bfloat16 scales [out, in / group]."""
    blocks = _pad(scale.bfloat16(), 0).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
    return _pack(_INT4, codes, 2 * codes.shape[1], blocks, bias, group_size)


def _pack(
    kind: int,
    rows: Tensor,
    in_features: int,
    scale: Tensor | None,
    bias: Tensor | None,
    group: int,
    input_scale: Tensor | None = None,
    arena: Arena | None = None,
) -> PackedWeight:
    # Units are four bytes; but for float32, whose kernel has no tiles, a line of 16 units is whole.
    width = 4 // rows.element_size()
    padded = _pad(_pad(rows, 1, width * (1 if kind in (_F32, _INT4) else LANES)), 0)
    units = padded.view(torch.int32)
    lines = units.unflatten(0, (-1, LANES)).transpose(1, 2)
    memory = arena or _arenas
    codes, scale = memory.put(lines), None if scale is None else memory.put(scale)
    wide_bias = None if bias is None else _pad(bias.float(), 0)
    kept = codes, scale, wide_bias, input_scale
    tensors = tuple(t for t in kept if t is not None)
    pointers = [0 if t is None else t.data_ptr() for t in kept]
    out_features = rows.shape[0]
    handle = _cpu.weight(kind, out_features, in_features, units.shape[1], group, *pointers)
    return PackedWeight(_INPUTS[kind], out_features, in_features, tensors, handle)


def padded(count: int, multiple: int = LANES) -> int:
    """`count`, or the next multiple after it."""
    return count + -count % multiple


def _pad(tensor: Tensor, dim: int, multiple: int = LANES) -> Tensor:
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor.contiguous()
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat((tensor, tensor.new_zeros(shape)), dim)


def linear(
    x: Tensor,
    weight: PackedWeight,
    dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
    changes: tuple[Any, Tensor] | None = None,
) -> Tensor:
    """x [tokens, in] -> [tokens, out] in `dtype`, or else in x's, plus `residual` like the result.

    `changes` are a bank, its changes in x's dtype, and int32 [tokens] that says which slot's each
    row gets, -1 for none. Raises ValueError for a residual that is not contiguous or not like the
    result.
    """
    out = _empty(x.shape[0], weight.out_features, dtype=dtype or x.dtype)
    if residual is not None and (
        residual.dtype != out.dtype or residual.shape != out.shape or not residual.is_contiguous()
    ):
        raise ValueError("residual must be contiguous, of the result's shape and dtype")
    _cpu.linear(
        weight.handle,
        x.data_ptr(), _DTYPES[x.dtype], x.stride(0), x.shape[0],
        out.data_ptr(), _DTYPES[out.dtype], weight.out_features,
        0 if residual is None else residual.data_ptr(),
        None if changes is None else changes[0],
        0 if changes is None else changes[1].data_ptr(),
    )  # fmt: skip
    return out


def embed(ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """int64 ids [tokens] -> rows [tokens, hidden] of a packed float or int8 matrix."""
    out = _empty(ids.shape[0], weight.in_features, dtype=dtype)
    _cpu.embed(
        weight.handle, ids.data_ptr(), ids.shape[0], out.data_ptr(), _DTYPES[dtype], out.stride(0)
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = _empty(*x.shape, dtype=x.dtype)
    features, kind = x.shape[1], _DTYPES[x.dtype]
    _cpu.rms_norm(
        x.data_ptr(), kind, features, weight.data_ptr(), eps, x.shape[0], features,
        out.data_ptr(), kind, features,
    )  # fmt: skip
    return out


def silu_and_mul(gate_up: Tensor) -> Tensor:
    tokens, features, kind = gate_up.shape[0], gate_up.shape[1] // 2, _DTYPES[gate_up.dtype]
    out = _empty(tokens, features, dtype=gate_up.dtype)
    _cpu.silu_and_mul(
        gate_up.data_ptr(), kind, 2 * features, tokens, features,
        out.data_ptr(), kind, features,
    )  # fmt: skip
    return out


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [int64 count] of x [tokens, ...], of which each is in one piece."""
    out = _empty(rows.shape[0], *x.shape[1:], dtype=x.dtype)
    kind, features = _DTYPES[x.dtype], out[0].numel()
    _cpu.gather(
        x.data_ptr(), kind, x.stride(0), rows.data_ptr(), rows.shape[0], features,
        out.data_ptr(), kind, features,
    )  # fmt: skip
    return out


def angles(positions: Tensor, frequencies: Tensor, magnitude: float) -> tuple[Tensor, Tensor]:
    tokens, count = positions.shape[0], frequencies.shape[0]
    cos, sin = (_empty(tokens, count, dtype=torch.float32) for _ in range(2))
    _cpu.angles(
        positions.data_ptr(), frequencies.data_ptr(), magnitude, tokens, count,
        cos.data_ptr(), sin.data_ptr(),
    )  # fmt: skip
    return cos, sin


def rotate(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """In place: the results are views of `qkv`."""
    tokens, head_dim = qkv.shape[0], 2 * cos.shape[1]
    q_norm, k_norm = (0, 0) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
    _cpu.rotary(
        qkv.data_ptr(), _DTYPES[qkv.dtype], qkv.stride(0), cos.data_ptr(), sin.data_ptr(),
        q_norm, k_norm, 0 if center is None else center.data_ptr(),
        eps, tokens, heads, kv_heads, head_dim,
    )  # fmt: skip
    # The builtin itself: Tensor.split takes several times as long, in every layer of every step.
    q, k, v = torch.split_with_sizes(qkv.view(tokens, -1, head_dim), (heads, kv_heads, kv_heads), 1)
    return q, k, v


def allocate_cache(
    blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: Any
) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer (drawn in cpu/ops.h); the first dimension counts blocks.

    `dtype` int8 halves what bfloat16 takes: codes, and a float32 scale for every token and head.
    Pages that the system hands out, zeroed, when a block is first written: a cache costs no time at
    the start, and no memory before it is used.
    """

    def pages(width: int) -> Tensor:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no large pages
        memory = mmap.mmap(-1, blocks * width * dtype.itemsize, private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=dtype).view(blocks, width)

    padded = -(-head_dim // LANES) * LANES
    scale = 4 if dtype == torch.int8 else 0
    tokens = kv_heads * block_size
    return pages(tokens * (head_dim + scale)), pages(tokens * (padded + scale))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: tuple[Tensor, Tensor],
    layout: PagedLayout,
    *,
    window: int | None,
) -> Tensor:
    """Queries may be fewer than keys: `layout.slots` count these, `layout.starts` those."""
    keys, values = cache
    tokens, heads, head_dim = q.shape
    kv_heads, kind, kept = k.shape[1], _DTYPES[q.dtype], _DTYPES[keys.dtype]
    _cpu.store(
        k.data_ptr(), kind, k.stride(0), v.data_ptr(), kind, v.stride(0), kept,
        keys.data_ptr(), values.data_ptr(), layout.slots.data_ptr(),
        k.shape[0], kv_heads, head_dim, layout.block_size,
    )  # fmt: skip
    out = _empty(tokens, heads * head_dim, dtype=q.dtype)
    _cpu.attention(
        q.data_ptr(), kind, q.stride(0), out.data_ptr(), kind, heads * head_dim,
        *_read(cache, layout, kv_heads, head_dim),
        heads, layout.starts.data_ptr(), window or 0, head_dim**-0.5,
    )  # fmt: skip
    return out


def fetch(cache: tuple[Tensor, Tensor], layout: PagedLayout, kv_heads: int, head_dim: int) -> None:
    """Have the linear layers until the next attention bring what that will read into the caches.

    The next attention is the one over `cache` with this layout.
    """
    _cpu.fetch(*_read(cache, layout, kv_heads, head_dim))


def _read(
    cache: tuple[Tensor, Tensor], layout: PagedLayout, kv_heads: int, head_dim: int
) -> tuple[int, ...]:
    """What an attention reads, as the extension wants it."""
    keys, values = cache
    return (
        _DTYPES[keys.dtype], keys.data_ptr(), values.data_ptr(), kv_heads, head_dim,
        layout.block_size, layout.block_tables.data_ptr(), layout.block_tables.stride(0),
        layout.lengths.data_ptr(), len(layout.context_lengths),
    )  # fmt: skip


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    finite = torch.empty(rows, dtype=torch.bool)
    _cpu.greatest(
        logits.data_ptr(), rows, vocab, logits.stride(0), tokens.data_ptr(), finite.data_ptr()
    )
    return tokens, finite


def draw(logits: Tensor, cuts: Cuts) -> Tensor:
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    _cpu.draw(
        logits.data_ptr(), rows, vocab, logits.stride(0), cuts.temperature.data_ptr(),
        cuts.top_p.data_ptr(), cuts.min_p.data_ptr(), cuts.uniform.data_ptr(),
        cuts.top_k.data_ptr(), tokens.data_ptr(),
    )  # fmt: skip
    return tokens
