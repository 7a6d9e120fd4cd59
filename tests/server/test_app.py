"""The settings that the engine and the processes of jobs get."""

from __future__ import annotations

import pytest
from hagane.server.app import job_options, residency
from hagane.server.engine_config import engine_config
from hagane.system.errors import ConfigurationError
from hagane.system.settings import Settings


@pytest.mark.parametrize(
    ("key", "engine", "jobs", "models", "share"),
    [
        ("", 0.9, 0.3, 1, 0.9),
        ("k", 0.9, 0.3, 1, 0.6),
        ("k", 0.5, 0.3, 1, 0.5),
        ("k", 0.9, 0.1, 0, 0.9),
        ("k", 0.9, 0.1, 3, 0.6),
    ],
)
def test_the_base_leaves_a_gpu_s_parts_of_jobs_and_whole_models_free(
    key, engine, jobs, models, share
):
    settings = Settings(
        admin_key=key, gpu_memory_fraction=engine, job_gpu_memory_fraction=jobs,
        resident_models=models, log_level="error",
    )  # fmt: skip
    assert engine_config(settings, "m").gpu_memory_fraction == pytest.approx(share)
    assert job_options(settings).gpu_memory_fraction == jobs
    assert job_options(settings).log_level == "error"
    assert residency(settings).models == models


def test_parts_that_leave_the_base_nothing_are_refused():
    with pytest.raises(ConfigurationError, match="resident_models 9"):
        engine_config(Settings(admin_key="k", resident_models=9), "m")
