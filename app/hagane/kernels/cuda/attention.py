"""Attention over the paged cache: split-KV decoding and ragged chunked prefill.

The cache of a layer is keys and values, each [blocks, block_size, kv_heads, head_dim]; the key at
position p of a sequence is row `table[p // block_size] * block_size + p % block_size`. Softmax runs
online (Milakov and Gimelshein, 2018, arXiv:1805.02867; Dao, 2023, arXiv:2307.08691), in powers of
two: log2(e) is part of the scale. All sums are float32.
"""

from __future__ import annotations

import itertools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hagane.kernels.cuda.tiles import (
    MIN_DOT,
    decode_splits,
    decode_tiles,
    power_of_two,
    prefill_tiles,
)
from hagane.kernels.layout import PagedLayout, Scoring

_LOG2_E = math.log2(math.e)
# Finite, so that a row that has seen nothing yet does not become NaN.
_NOTHING = tl.constexpr(-1e30)


@triton.jit
def _capped(scores, CAP: tl.constexpr):
    """CAP * tanh(scores / CAP), both in powers of two; CAP 0 is none."""
    if CAP > 0:
        scores = CAP - 2 * CAP / (tl.exp2(scores * (2.8853900817779268 / CAP)) + 1)
    return scores


@triton.jit
def _span(
    q, keys, values, table, kv_head, positions, scale, top, total, mixed, begin, end,
    BLOCK_SIZE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Let queries [rows, DEPTH] at `positions` [rows] look at keys begin to end of one sequence.

    `top`, `total` and `mixed` are what is known so far: the largest score, the sum of weights and
    the weighted sum of values. Without MASKED every query sees every key.
    """
    feature = tl.arange(0, DEPTH)
    real = feature < HEAD_DIM
    for start in range(begin, end, COLUMNS):
        key = start + tl.arange(0, COLUMNS)
        there = key < end
        block = tl.load(table + key // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
        row = ((block * BLOCK_SIZE + key % BLOCK_SIZE) * KV_HEADS + kv_head) * HEAD_DIM
        k = tl.load(
            keys + row[None, :] + feature[:, None], mask=there[None, :] & real[:, None], other=0.0
        )
        scores = _capped(tl.dot(q, k, input_precision="ieee") * scale, CAP)
        if MASKED:
            seen = there[None, :] & (key[None, :] <= positions[:, None])
            if WINDOW > 0:
                seen = seen & (key[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, _NOTHING)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        v = tl.load(
            values + row[:, None] + feature[None, :], mask=there[:, None] & real[None, :], other=0.0
        )
        total = total * fade + tl.sum(weights, axis=1)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher
    return top, total, mixed


@triton.jit
def _decode(
    q, k, v, keys, values, out, tops, totals, mixes, slots, tables, lengths, sinks,
    q_row, k_row, v_row, table_row, scale,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, SINKS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One new token of one sequence: the query heads of a KV head, over a part of its keys.

    The first part's program also puts the new key and value into the cache, and looks at them in
    registers: no other program reads them. A length of 0 marks a row that pads the batch.
    """
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    past = tl.maximum(length - 1, 0)
    first = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else 0
    share = tl.cdiv(tl.cdiv(past - first, SPLITS), COLUMNS) * COLUMNS
    begin = first + split * share
    end = tl.minimum(begin + share, past)

    feature = tl.arange(0, DEPTH)
    real = feature < HEAD_DIM
    member = tl.arange(0, GROUP_ROWS)
    head = kv_head * GROUP + member
    queries = tl.load(
        q + row.to(tl.int64) * q_row + head[:, None] * HEAD_DIM + feature[None, :],
        mask=(member < GROUP)[:, None] & real[None, :],
        other=0.0,
    )
    dtype = queries.dtype
    key = tl.load(k + row.to(tl.int64) * k_row + kv_head * HEAD_DIM + feature, mask=real, other=0.0)
    value = tl.load(
        v + row.to(tl.int64) * v_row + kv_head * HEAD_DIM + feature, mask=real, other=0.0
    )
    newest = (split == 0) & (length > 0)
    slot = tl.load(slots + row) * KV_HEADS + kv_head
    tl.store(keys + slot * HEAD_DIM + feature, key, mask=real & newest)
    tl.store(values + slot * HEAD_DIM + feature, value, mask=real & newest)

    score = tl.sum(queries.to(tl.float32) * key[None, :].to(tl.float32), axis=1) * scale
    score = _capped(score, CAP)
    top = tl.where(newest, score, _NOTHING)
    total = tl.where(newest, 1.0, 0.0) + tl.zeros([GROUP_ROWS], tl.float32)
    mixed = tl.where(newest, value[None, :].to(tl.float32), 0.0) + tl.zeros(
        [GROUP_ROWS, DEPTH], tl.float32
    )
    if SINKS:
        # Of all parts, the first one alone knows the sink.
        sink = tl.load(sinks + head, mask=member < GROUP, other=0.0) * 1.4426950408889634
        sink = tl.where(newest, sink, _NOTHING)
        higher = tl.maximum(top, sink)
        fade = tl.exp2(top - higher)
        total = total * fade + tl.where(newest, tl.exp2(sink - higher), 0.0)
        mixed = mixed * fade[:, None]
        top = higher
    position = tl.zeros([GROUP_ROWS], tl.int32) + past
    top, total, mixed = _span(
        queries, keys, values, tables + row.to(tl.int64) * table_row, kv_head, position, scale,
        top, total, mixed, begin, end,
        BLOCK_SIZE, KV_HEADS, HEAD_DIM, DEPTH, COLUMNS, 0, CAP, True,
    )  # fmt: skip
    at = row.to(tl.int64) * KV_HEADS * GROUP + head
    if SPLITS == 1:
        result = mixed / tl.maximum(total, 1e-30)[:, None]
        tl.store(
            out + at[:, None] * HEAD_DIM + feature[None, :],
            result.to(dtype),
            mask=(member < GROUP)[:, None] & real[None, :],
        )
    else:
        at = at * SPLITS + split
        tl.store(tops + at, top, mask=member < GROUP)
        tl.store(totals + at, total, mask=member < GROUP)
        tl.store(
            mixes + at[:, None] * HEAD_DIM + feature[None, :],
            mixed,
            mask=(member < GROUP)[:, None] & real[None, :],
        )


@triton.jit
def _combine(
    tops, totals, mixes, out,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The parts of one query head into one result, each by the weight it saw."""
    at = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, DEPTH)
    split = at * SPLITS + tl.arange(0, SPLITS)
    top = tl.load(tops + split)
    weight = tl.exp2(top - tl.max(top, axis=0))
    total = tl.sum(weight * tl.load(totals + split), axis=0)
    real = feature < HEAD_DIM
    mixed = tl.load(
        mixes + split[:, None] * HEAD_DIM + feature[None, :], mask=real[None, :], other=0.0
    )
    result = tl.sum(mixed * weight[:, None], axis=0) / tl.maximum(total, 1e-30)
    tl.store(out + at * HEAD_DIM + feature, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def _prefill(
    q, keys, values, out, tables, starts, lengths, sinks,
    q_row, table_row, scale, first_sequence,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """A tile of one sequence's new tokens, one query head; its keys are in the cache already."""
    sequence = first_sequence + tl.program_id(2)
    head = tl.program_id(1)
    start = tl.load(starts + sequence)
    count = tl.load(starts + sequence + 1) - start
    # The last tiles have the most keys to see: they start first.
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    if tile >= count:
        return
    context = tl.load(lengths + sequence)
    member = tile + tl.arange(0, ROWS)
    positions = context - count + member
    feature = tl.arange(0, DEPTH)
    real = (member < count)[:, None] & (feature < HEAD_DIM)[None, :]
    row = (start + member).to(tl.int64)
    queries = tl.load(
        q + row[:, None] * q_row + head * HEAD_DIM + feature[None, :], mask=real, other=0.0
    )
    dtype = queries.dtype

    lowest = context - count + tile
    end = tl.minimum(lowest + ROWS, context)
    begin, whole = 0, 0
    if WINDOW > 0:
        begin = tl.maximum(lowest - WINDOW + 1, 0) // COLUMNS * COLUMNS
        whole = begin
    else:
        # Up to here all of the tile's queries see all keys: no mask.
        whole = (lowest + 1) // COLUMNS * COLUMNS
    top = tl.zeros([ROWS], tl.float32) + _NOTHING
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DEPTH], tl.float32)
    if SINKS:
        top = tl.zeros([ROWS], tl.float32) + tl.load(sinks + head) * 1.4426950408889634
        total += 1.0
    table = tables + sequence.to(tl.int64) * table_row
    top, total, mixed = _span(
        queries, keys, values, table, head // GROUP, positions, scale,
        top, total, mixed, begin, whole,
        BLOCK_SIZE, KV_HEADS, HEAD_DIM, DEPTH, COLUMNS, WINDOW, CAP, False,
    )  # fmt: skip
    top, total, mixed = _span(
        queries, keys, values, table, head // GROUP, positions, scale,
        top, total, mixed, whole, end,
        BLOCK_SIZE, KV_HEADS, HEAD_DIM, DEPTH, COLUMNS, WINDOW, CAP, True,
    )  # fmt: skip
    result = mixed / tl.maximum(total, 1e-30)[:, None]
    at = (row * KV_HEADS * GROUP + head) * HEAD_DIM
    tl.store(out + at[:, None] + feature[None, :], result.to(dtype), mask=real)


@triton.jit
def _store(k, v, keys, values, slots, k_row, v_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One token's keys and values of all KV heads, WIDTH features each, into its slot."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token) * WIDTH
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    tl.store(keys + slot + at, tl.load(k + token * k_row + at, mask=inside), mask=inside)
    tl.store(values + slot + at, tl.load(v + token * v_row + at, mask=inside), mask=inside)


def paged_attention(
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
) -> Tensor:
    """Rows of q, k and v may be apart, their heads and features not."""
    tokens, heads, head_dim = q.shape
    out = q.new_empty(tokens, heads * head_dim)
    # Softmax and cap count in powers of two.
    scoring = Scoring((scale or head_dim**-0.5) * _LOG2_E, window, cap * _LOG2_E, sinks)
    if layout.decodes:
        _attend_decodes(q, k, v, cache, layout, scoring, out)
    if tokens > layout.decodes:
        _attend_chunks(q, k, v, cache, layout, scoring, out)
    return out


def _or_any(sinks: Tensor | None, other: Tensor) -> Tensor:
    """A kernel without sinks never reads what it gets for them."""
    return other if sinks is None else sinks


def _attend_decodes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: tuple[Tensor, Tensor],
    layout: PagedLayout,
    scoring: Scoring,
    out: Tensor,
) -> None:
    rows, (heads, head_dim), kv_heads = layout.decodes, q.shape[1:], k.shape[1]
    tiles = decode_tiles(head_dim, q.element_size())
    splits = decode_splits(rows, kv_heads)
    parts = rows * heads * splits if splits > 1 else 0
    tops, totals = q.new_empty(2, parts, dtype=torch.float32)
    mixes = q.new_empty(parts, head_dim, dtype=torch.float32)
    depth = max(MIN_DOT, power_of_two(head_dim))
    _decode[(rows, kv_heads, splits)](
        q, k, v, *cache, out, tops, totals, mixes,
        layout.slots, layout.block_tables, layout.lengths, _or_any(scoring.sinks, q),
        q.stride(0), k.stride(0), v.stride(0), layout.block_tables.stride(0),
        scoring.scale,
        GROUP=heads // kv_heads, GROUP_ROWS=max(MIN_DOT, power_of_two(heads // kv_heads)),
        KV_HEADS=kv_heads, HEAD_DIM=head_dim, DEPTH=depth, BLOCK_SIZE=layout.block_size,
        COLUMNS=tiles.columns, WINDOW=scoring.window or 0, CAP=scoring.cap,
        SINKS=scoring.sinks is not None, SPLITS=splits,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if splits > 1:
        _combine[(rows * heads,)](
            tops, totals, mixes, out,
            HEAD_DIM=head_dim, DEPTH=depth, SPLITS=splits, num_warps=4,
        )  # fmt: skip


def _attend_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: tuple[Tensor, Tensor],
    layout: PagedLayout,
    scoring: Scoring,
    out: Tensor,
) -> None:
    (tokens, heads, head_dim), kv_heads, first = q.shape, k.shape[1], layout.decodes
    width = kv_heads * head_dim
    _store[(tokens - first,)](
        k[first:], v[first:], *cache, layout.slots[first:], k.stride(0), v.stride(0),
        WIDTH=width, BLOCK=power_of_two(width), num_warps=4,
    )  # fmt: skip
    starts = layout.query_starts[first:]
    longest = max(end - start for start, end in itertools.pairwise(starts))
    tiles = prefill_tiles(head_dim, q.element_size())
    _prefill[(triton.cdiv(longest, tiles.rows), heads, len(starts) - 1)](
        q, *cache, out, layout.block_tables, layout.starts, layout.lengths,
        _or_any(scoring.sinks, q),
        q.stride(0), layout.block_tables.stride(0), scoring.scale, first,
        GROUP=heads // kv_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim,
        DEPTH=max(MIN_DOT, power_of_two(head_dim)), BLOCK_SIZE=layout.block_size,
        ROWS=tiles.rows, COLUMNS=tiles.columns, WINDOW=scoring.window or 0,
        CAP=scoring.cap, SINKS=scoring.sinks is not None,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
