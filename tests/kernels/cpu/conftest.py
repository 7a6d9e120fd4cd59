"""The native kernels with each of this machine's instruction sets, for tests that ask for them."""

from __future__ import annotations

import pytest
from hagane.kernels import cpu
from hagane.system.machine import usable_cores

from tests.support.paging import SETS


@pytest.fixture(scope="module", params=SETS)
def instruction_set(request):
    """Two threads, so that work in parallel shows."""
    if not cpu.available():
        pytest.skip("kernels not built")
    try:
        cpu.start(min(2, len(usable_cores())), request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    cpu.start(1)
