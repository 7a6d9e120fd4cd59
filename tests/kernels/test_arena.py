"""Matrices that lie side by side in large pages."""

from __future__ import annotations

import torch
from hagane.kernels.arena import Arena, Arenas

_LINE = 64


def test_tensors_lie_one_after_the_other_each_at_a_line():
    tensors = [torch.arange(count, dtype=torch.int8) for count in (5, 64, 0, 130)]
    arena = Arena(Arena.room(sum(t.nbytes for t in tensors), len(tensors)))
    copies = [arena.put(tensor) for tensor in tensors]
    assert all(torch.equal(*pair) for pair in zip(copies, tensors, strict=True))
    starts = [copy.data_ptr() for copy in copies if copy.numel()]
    assert starts == [starts[0], starts[0] + _LINE, starts[0] + 2 * _LINE]


def test_what_does_not_fit_begins_another_arena():
    arenas = Arenas(4096)
    tensors = [torch.full((count,), count, dtype=torch.int32) for count in (500, 400, 5000, 3)]
    copies = [arenas.put(tensor) for tensor in tensors]
    del arenas
    assert all(torch.equal(*pair) for pair in zip(copies, tensors, strict=True))
    transposed = torch.arange(12).view(3, 4).T
    assert torch.equal(Arenas(8).put(transposed), transposed)
