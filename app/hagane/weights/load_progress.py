"""How far loading has come, for the log, and what it came to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hagane.models.config import Quantization
from hagane.models.linear import Quantized

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """Totals of a load; `weight_bytes` includes scales, `parameters` counts weights alone."""

    parameters: int
    weight_bytes: int
    seconds: float
    quantization: Quantization | None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.weight_bytes / self.parameters


class LoadProgress:
    """Logs how much is loaded, once a second from the first second on."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self._done = total, 0
        self._now = now
        self._started = self._reported = now()

    def advance(self, parameters: int) -> None:
        """Count so many more parameters as loaded."""
        self._done += parameters
        now = self._now()
        if now - self._reported < 1.0 or self._done >= self.total:
            return
        self._reported = now
        left = (now - self._started) * (self.total - self._done) / self._done
        logger.info(
            "loading weights: %d%% (%d of %d M parameters), about %.0f s left",
            100 * self._done // self.total,
            self._done // 10**6,
            self.total // 10**6,
            left,
        )


def count_parameters(module: nn.Module) -> int:
    """Parameters; of a quantized module, those that were there before."""
    total = sum(p.numel() for p in module.parameters(recurse=False))
    if isinstance(module, Quantized):
        codes = next(module.buffers(recurse=False))
        total += codes.numel() * module.weights_per_code
    return total
