"""The server's settings for jobs. Needs no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class JobOptions(BaseModel):
    """Options that the processes of jobs receive as JSON.

    `gpu_memory_fraction` is the fraction of a GPU's memory that a job may use, `kept_checkpoints`
    the number of checkpoints that a fine-tuning job keeps. `threads` take the place of the job's
    own, which the server chose for its own machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_memory_fraction: float = 0.1
    kept_checkpoints: int = 3
    threads: int | None = None
    log_level: str = "info"
    log_format: str = "auto"
