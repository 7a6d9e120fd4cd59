"""The kernels compiled by Triton and ptxas for a Hopper GPU; needs none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent / "compile_kernels.py"
SOURCE = SCRIPT.parents[3] / "app"


@pytest.mark.slow
def test_loads_are_wide_nothing_spills_and_products_use_tensor_cores(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(SOURCE), "TRITON_CACHE_DIR": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, SCRIPT], check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    kernels = json.loads(output)
    assert len(kernels) > 15
    # The draw keeps a row's state in registers but for one value.
    assert {n: k["spilt_bytes"] for n, k in kernels.items() if k["spilt_bytes"] > 4} == {}
    narrow = {name for name, kernel in kernels.items() if not kernel["wide_loads"]}
    assert narrow <= {"vector int4"}
    products = {"prefill", "decode", "int8 by int8", "small int4", "small int8", "small fp8"}
    products |= {f"small of {bits} bits in groups" for bits in (4, 8)}
    assert products == {name for name, kernel in kernels.items() if kernel["tensor_cores"]}
