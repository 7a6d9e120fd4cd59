"""A rank's part of a step."""

from __future__ import annotations

import pytest
import torch
from hagane.system.errors import ConfigurationError
from hagane.training.parallel.group import ALONE, Group
from torch import nn


def test_every_item_is_one_ranks():
    items = list(range(7))
    parts = [Group(rank, 3).part(items) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == items
    assert [len(part) for part in parts] == [3, 2, 2]
    assert [Group(rank, 3).part([0]) for rank in range(3)] == [[0], [], []]


def test_rows_that_ranks_cannot_share_are_refused():
    with pytest.raises(ConfigurationError, match="multiple of the 3 processes"):
        Group(rank=0, size=3).share(4)
    assert [Group(rank, 2).share(6) for rank in range(2)] == [slice(0, 3), slice(3, 6)]


def test_threads_are_shared_by_the_ranks_of_a_machine():
    assert Group(5, 8, local_rank=1, local_size=4).threads(8) == 2
    assert Group(1, 4, local_rank=1, local_size=4).threads(2) == 1
    assert ALONE.threads(None) == torch.get_num_threads()


def test_alone_nothing_is_exchanged():
    parameter = nn.Parameter(torch.ones(3))
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None
    assert ALONE.sum(1.5, 2.0) == (1.5, 2.0)
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
