"""Sampling without sorting and without asking the host.

A row's tokens have weights w = exp((logit - largest) / temperature), in (0, 1]. Where a cut falls
is found by narrowing down the bits of w, which as an integer grow with w: every pass over the row
measures the tokens at or above eight thresholds, and leaves an eighth of the interval. After ten
passes one value is left. The sampled token is found in the same way, as tokens are ordered by
falling weights (of rising token ids where nothing is cut, as in `hagane.kernels.sampling`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hagane.kernels.sampling import SamplingTensors
from hagane.kernels.transfer import send

_WAYS = tl.constexpr(8)
_ONE = tl.constexpr(0x3F800000)  # the bits of the weight 1.0, the largest there is
_PASSES = tl.constexpr(10)  # 8 ** 10 is more than _ONE
_TILE = 2048


@triton.jit
def _weights(logits, start, vocab, largest, sharpness, TILE: tl.constexpr):
    """Token ids [TILE] from `start`, and their weights; 0 past the end of the vocabulary."""
    token = start + tl.arange(0, TILE)
    score = tl.load(logits + token, mask=token < vocab, other=-float("inf"))
    weight = tl.exp2((score - largest) * sharpness)
    # Not a number where the row is broken: nothing may be found there, and no loop run wild.
    return token, tl.where(weight > 0.0, weight, 0.0)


@triton.jit
def _measure(logits, vocab, largest, sharpness, edges, TILE: tl.constexpr):
    """How many tokens have weights of bits >= edges [8], and how much they weigh together."""
    counts = tl.zeros([_WAYS], tl.float32)
    masses = tl.zeros([_WAYS], tl.float32)
    for start in range(0, vocab, TILE):
        _, weight = _weights(logits, start, vocab, largest, sharpness, TILE)
        bits = weight.to(tl.int32, bitcast=True)
        above = (bits[None, :] >= edges[:, None]) & (weight > 0.0)[None, :]
        counts += tl.sum(above.to(tl.float32), axis=1)
        masses += tl.sum(tl.where(above, weight[None, :], 0.0), axis=1)
    return counts, masses


@triton.jit
def _at(values, index):
    return tl.sum(tl.where(tl.arange(0, _WAYS) == index, values, 0.0), axis=0)


@triton.jit
def _last(logits, vocab, largest, sharpness, lowest, count, mass, TILE: tl.constexpr):
    """The largest bits >= `lowest` such that the tokens at or above them suffice.

    That is, they are at least `count`, or weigh `mass` or more.
    """
    low = lowest
    width = 1 - lowest + _ONE
    for _ in range(_PASSES):
        step = tl.maximum(tl.cdiv(width, _WAYS), 1)
        edges = low + step * tl.arange(0, _WAYS)
        counts, masses = _measure(logits, vocab, largest, sharpness, edges, TILE)
        enough = (counts >= count) | (masses >= mass)
        # The first edge always suffices: it was found so, or is the lowest.
        passed = tl.maximum(tl.sum(enough.to(tl.int32), axis=0), 1)
        low += step * (passed - 1)
        width = step
    return low


@triton.jit
def _sample(
    logits, temperatures, top_ps, min_ps, top_ks, uniforms, tokens, vocab, row_stride,
    TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_stride
    top = tl.zeros([TILE], tl.float32) - float("inf")
    for start in range(0, vocab, TILE):
        token = start + tl.arange(0, TILE)
        top = tl.maximum(top, tl.load(logits + token, mask=token < vocab, other=-float("inf")))
    largest = tl.max(top, axis=0)
    sharpness = 1.4426950408889634 / tl.load(temperatures + row)  # log2(e)
    top_p, min_p = tl.load(top_ps + row), tl.load(min_ps + row)
    top_k, uniform = tl.load(top_ks + row), tl.load(uniforms + row)
    sums = tl.zeros([TILE], tl.float32)
    for start in range(0, vocab, TILE):
        _, weight = _weights(logits, start, vocab, largest, sharpness, TILE)
        sums += weight
    mass = tl.sum(sums, axis=0)

    cut = (top_p < 1.0) | (min_p > 0.0) | ((top_k > 0) & (top_k < vocab))
    choice = 0
    if cut:
        choice = _sample_filtered(
            logits, vocab, largest, sharpness, mass, top_p, min_p, top_k, uniform, TILE
        )
    else:
        choice = _sample_unfiltered(logits, vocab, largest, sharpness, uniform * mass, TILE)
    tl.store(tokens + row, choice.to(tl.int64))


@triton.jit
def _sample_filtered(
    logits, vocab, largest, sharpness, mass, top_p, min_p, top_k, uniform, TILE: tl.constexpr
):  # fmt: skip
    ways = tl.arange(0, _WAYS)
    lowest = tl.maximum(tl.minimum(min_p, 1.0), 2e-38).to(tl.int32, bitcast=True)
    count = tl.where(top_k > 0, top_k, vocab).to(tl.float32)
    wanted = tl.where(top_p < 1.0, top_p * mass, float("inf"))
    edge = _last(logits, vocab, largest, sharpness, lowest, count, wanted, TILE)
    counts, masses = _measure(logits, vocab, largest, sharpness, edge + ways, TILE)
    # Of the tokens exactly at the edge only the first may be needed.
    weight = edge.to(tl.float32, bitcast=True)
    ties = _at(counts, 0) - _at(counts, 1)
    ties = tl.minimum(ties, count - _at(counts, 1))
    ties = tl.minimum(ties, tl.ceil((wanted - _at(masses, 1)) / weight))
    heavier = _at(masses, 1)
    target = uniform * (heavier + tl.maximum(ties, 0.0) * weight)
    found, place = edge, tl.minimum(tl.floor((target - heavier) / weight), ties - 1.0)
    if (target < heavier) | (ties < 1.0):
        # Not at the edge, but where the weight above passes the target: reaches the next float.
        below = (heavier.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
        target = tl.minimum(target, below)
        above = (target.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
        found = _last(logits, vocab, largest, sharpness, edge + 1, float("inf"), above, TILE)
        counts, masses = _measure(logits, vocab, largest, sharpness, found + ways, TILE)
        place = tl.floor((target - _at(masses, 1)) / found.to(tl.float32, bitcast=True))
        place = tl.minimum(place, _at(counts, 0) - _at(counts, 1) - 1.0)
    return _tie(logits, vocab, largest, sharpness, found, place, TILE)


@triton.jit
def _tie(logits, vocab, largest, sharpness, edge, place, TILE: tl.constexpr):
    """The id of token number `place`, from 0 by rising id, of those of weights of bits `edge`."""
    before = 0.0
    choice = 0
    for start in range(0, vocab, TILE):
        token, weight = _weights(logits, start, vocab, largest, sharpness, TILE)
        equal = (weight.to(tl.int32, bitcast=True) == edge).to(tl.float32)
        number = before + tl.cumsum(equal, axis=0)
        hit = (equal > 0.0) & (number == tl.maximum(place, 0.0) + 1.0)
        choice = tl.maximum(choice, tl.max(tl.where(hit, token, 0), axis=0))
        before += tl.sum(equal, axis=0)
    return choice


@triton.jit
def _sample_unfiltered(logits, vocab, largest, sharpness, target, TILE: tl.constexpr):
    """The first token by whose end more than `target` of the weight has passed."""
    before = 0.0
    first = vocab
    last = 0
    for start in range(0, vocab, TILE):
        token, weight = _weights(logits, start, vocab, largest, sharpness, TILE)
        passed = (before + tl.cumsum(weight, axis=0) > target) & (weight > 0.0)
        first = tl.minimum(first, tl.min(tl.where(passed, token, vocab), axis=0))
        # Rounding may carry the target past the last token that has any weight.
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, token, 0), axis=0))
        before += tl.sum(weight, axis=0)
    return tl.minimum(first, last)


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """As `hagane.kernels.sampling.sample`, in float32; a row of NaN logits gives any id.

    Nothing waits for the device: the parameters are sent there, the tokens stay there.
    """
    rows, vocab = logits.shape
    numbers = torch.stack(
        (sampling.temperature, sampling.top_p, sampling.min_p, sampling.uniform)
    ).float()
    (temperature, top_p, min_p, uniform), top_k = send(
        [numbers, sampling.top_k.int()], logits.device
    )
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _sample[(rows,)](
        logits, temperature, top_p, min_p, top_k, uniform, tokens, vocab, logits.stride(0),
        TILE=_TILE, num_warps=8,
    )  # fmt: skip
    return tokens
