"""Tile sizes of the Triton kernels: a small fixed table instead of autotuning at start.

Chosen for Hopper-class devices (132 multiprocessors, 228 KB of shared memory, 64 K registers
each), from arithmetic: a tile of queries in registers, two or three tiles of keys in shared memory,
and for what is bound by memory at least 32 KB of loads in flight on every multiprocessor.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton

# Only how far work is split depends on it, never a result's correctness.
MULTIPROCESSORS = 132
# Beyond this many rows a weight's bytes are no longer the bottleneck: tensor cores take over.
SMALL_BATCH = 64
# Tensor cores multiply 16 rows at least.
MIN_DOT = 16


@dataclass(frozen=True)
class Tiles:
    """Rows, columns and depth of one program's tile; warps per program; loads in flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def power_of_two(n: int) -> int:
    """The next power of two from `n` up: what a tile's sides must be."""
    size: int = triton.next_power_of_2(n)
    return size


def vector_tiles(outputs: int) -> Tiles:
    """One row times a matrix: enough programs for eight on every multiprocessor, if there are."""
    rows = 16
    while rows > 1 and outputs < 8 * MULTIPROCESSORS * rows:
        rows //= 2
    return Tiles(rows=rows, columns=1, depth=1024 if rows <= 4 else 512, warps=4, stages=1)


def small_tiles(rows: int, outputs: int) -> Tiles:
    """Up to SMALL_BATCH rows: narrow tiles, so that every multiprocessor streams weights."""
    columns = 64 if outputs >= 64 * MULTIPROCESSORS else 32
    return Tiles(max(MIN_DOT, power_of_two(rows)), columns, 128, warps=4, stages=4)


# Many rows in int8: 2 x 16 KB of operands a stage, a 128 x 128 sum over 8 warps.
LARGE = Tiles(rows=128, columns=128, depth=128, warps=8, stages=3)


def prefill_tiles(head_dim: int, itemsize: int) -> Tiles:
    """Queries (rows) by keys (columns); wide heads take twice the room.

    float32 has no tensor cores to go to: its tiles are bound by registers.
    """
    wide = head_dim * itemsize > 256
    rows = 128 if not wide else 32 if itemsize == 4 else 64
    return Tiles(rows, 32 if wide else 64, head_dim, warps=8, stages=2)


def decode_tiles(head_dim: int, itemsize: int) -> Tiles:
    """Keys (columns) at a time of one sequence and KV head: 16 KB of keys, and of values."""
    columns = max(MIN_DOT, min(128, (16 << 10) // (power_of_two(head_dim) * itemsize)))
    return Tiles(MIN_DOT, columns, head_dim, warps=4, stages=3)


def decode_splits(sequences: int, kv_heads: int) -> int:
    """How many programs share the keys of one sequence and KV head: four for a multiprocessor."""
    wanted = -(-4 * MULTIPROCESSORS // (sequences * kv_heads))
    return max(1, min(64, power_of_two(wanted)))
