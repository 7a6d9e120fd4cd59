"""What of the settings the engine and the processes of jobs are told."""

from __future__ import annotations

import pytest

from app.main import engine_config, job_options
from app.settings import Settings


@pytest.mark.parametrize(
    ("key", "engine", "jobs", "share"),
    [("", 0.9, 0.3, 0.9), ("k", 0.9, 0.3, 0.7), ("k", 0.5, 0.3, 0.5), ("k", 0.9, 0.1, 0.9)],
)
def test_the_engine_leaves_the_jobs_part_of_a_gpu_free(key, engine, jobs, share):
    settings = Settings(
        admin_key=key, gpu_memory_fraction=engine, job_gpu_memory_fraction=jobs, log_level="error"
    )
    assert engine_config(settings, "m").gpu_memory_fraction == pytest.approx(share)
    assert job_options(settings).gpu_memory_fraction == jobs
    assert job_options(settings).log_level == "error"
