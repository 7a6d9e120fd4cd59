"""What ends a run, in words that name the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from hagane.system.errors import ModelError, TrainingError
from hagane.system.files import is_full


def require_finite(*values: float) -> None:
    """Raises TrainingError for a loss or norm that is not finite."""
    if not all(map(math.isfinite, values)):
        raise TrainingError(
            "the loss is no longer finite: lower learning_rate or learning_rate_multiplier",
            code="non_finite_loss",
        )


@contextmanager
def explained() -> Iterator[None]:
    """Raise a full disk and exhausted memory as TrainingErrors that name the remedy."""
    try:
        yield
    except ModelError as error:
        raise TrainingError(str(error), code="invalid_model") from error
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        raise _explanation(error) from error


def _explanation(error: Exception) -> Exception:
    text = str(error)
    if is_full(error) or "No space left" in text:
        return TrainingError(
            "the disk is full: free some of it and resume from the last checkpoint",
            code="disk_full",
        )
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return TrainingError(
            "out of memory: shorten sequence_length, lower rank, or quantize the base",
            code="out_of_memory",
        )
    return error
