"""What the server's settings say of every job. Needs no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class JobOptions(BaseModel):
    """Handed to the processes of jobs as JSON.

    `gpu_memory_fraction` is the part of a GPU's memory that a job may take, `kept_checkpoints` how
    many a fine-tuning job keeps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_memory_fraction: float = 0.1
    kept_checkpoints: int = 3
    log_level: str = "info"
    log_format: str = "auto"
