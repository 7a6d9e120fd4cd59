"""Greedy text of the native kernels in bfloat16."""

from __future__ import annotations

import pytest
from hagane.kernels import cpu

from tests.support.greedy import assert_greedy_text_is_transformers, needs_builtin


@needs_builtin
@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_greedy_bfloat16_text_equals_transformers():
    assert_greedy_text_is_transformers("cpu")
