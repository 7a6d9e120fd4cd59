"""The weight formats that Hagane quantizes to, as every process knows them: no torch.

The choices of settings, commands and schemas, estimates of memory and the checks at start-up derive
from `WEIGHT_FORMATS`. The layers themselves are in `models/formats/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hagane.system.errors import ConfigurationError


@dataclass(frozen=True)
class WeightFormat:
    """A way to store matrices.

    `bits` counts a served weight with its share of the scales; `training_bytes` is a frozen weight
    of a linear layer while an adapter is trained. Codes of an `integer` format are computed with as
    integers, on a CPU after a rotation of their inputs; those of others are dequantized there.
    `cuda_capability` is the oldest that computes in the format.
    """

    name: str
    summary: str
    bits: float
    training_bytes: float
    integer: bool = True
    cuda_capability: tuple[int, int] = (0, 0)

    def check_capability(self, device: str, capability: tuple[int, int]) -> None:
        """Raise ConfigurationError if a GPU of this compute capability is too old."""
        if capability < self.cuda_capability:
            needed = ".".join(map(str, self.cuda_capability))
            raise ConfigurationError(
                f"quantize {self.name} needs a GPU of compute capability {needed} or later, "
                f"{device} has {capability[0]}.{capability[1]}: use int8"
            )


WEIGHT_FORMATS = {
    declared.name: declared
    for declared in (
        # A CPU keeps 8- and 4-bit weights transposed in 8 bits for the backward pass.
        WeightFormat("int8", "8 bits, one scale per channel", bits=8.1, training_bytes=2.0),
        WeightFormat("int4", "4 bits, one scale per group", bits=5.1, training_bytes=1.61),
        WeightFormat(
            "fp8",
            "8-bit floats (e4m3), one scale per channel: newer GPUs",
            bits=8.1,
            training_bytes=1.0,
            integer=False,
            # Ada and Hopper: the first whose tensor cores multiply 8-bit floats.
            cuda_capability=(8, 9),
        ),
    )
}

if TYPE_CHECKING:
    FormatName = str
    FormatChoice = str
else:
    FormatName = Literal[tuple(WEIGHT_FORMATS)]
    FormatChoice = Literal[("none", *WEIGHT_FORMATS)]
