"""`hagane bench` measures a real engine."""

from __future__ import annotations

import json
import subprocess
import sys

from hagane.cli.bench import rate


def test_bench_prints_every_figure(tiny_model_dir):
    command = [sys.executable, "-m", "hagane.cli", "bench", str(tiny_model_dir), "--json",
               "--streams",
               "1,3", "--prompts", "40", "--rounds", "1", "--new-tokens", "8"]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(output)
    assert set(result["decode"]) == {"1", "3"}
    assert set(result["prefill"]) == {"40"}
    rates = [*result["decode"].values(), *result["prefill"].values()]
    assert set(result["prefix_hit"]) == {"40"}
    rates += result["prefix_hit"].values()
    assert all(rate > 0 for rate in rates)
    assert result["ready_seconds"] > 0
    assert result["peak_memory"] > 10_000_000


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, "-m", "hagane.cli", "bench", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nothing" in done.stderr


def test_streams_that_never_overlap_still_have_a_rate():
    """On a busy machine the first stream may end before the last one begins."""
    assert rate([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]) == 2.0
    assert rate([[1.0, 2.0], [3.0, 4.0]]) == 1.0
