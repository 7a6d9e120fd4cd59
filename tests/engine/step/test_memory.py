"""The part of a GPU's memory that is left for the KV cache."""

from __future__ import annotations

import pytest
from hagane.engine.step.memory import remaining_memory

from tests.support.engine import config

GB = 10**9


@pytest.mark.parametrize(
    ("shares_device", "fraction", "left"),
    [
        (False, 0.5, 40 - 20 - 3 - 2),  # others have 9 of the 20 that are not free
        (True, 0.5, 40 - 11 - 3 - 2),
        (False, 1.0, 60 - 3 - 2),
        (False, 0.3, 0),
    ],
)
def test_weights_others_a_step_and_adapters_have_their_room(
    tmp_path, shares_device, fraction, left
):
    settings = config(
        tmp_path, gpu_memory_fraction=fraction, adapter_memory=2 * GB, shares_device=shares_device
    )
    found = remaining_memory(settings, free=60 * GB, total=80 * GB, reserved=11 * GB, step=3 * GB)
    assert found == left * GB
