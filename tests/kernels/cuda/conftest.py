"""Fixtures of the tests of the Triton kernels."""

from __future__ import annotations

import pytest
import torch

tiles = pytest.importorskip("hagane.kernels.cuda.tiles")


@pytest.fixture(scope="session", autouse=True)
def few_programs():
    """Work split for a small device: the interpreter takes 20 ms for every program of a grid."""
    if torch.cuda.is_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "MULTIPROCESSORS", 2)
        yield
