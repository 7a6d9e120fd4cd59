"""The tensor types of GGUF that are read: how many weights share a block, and its bytes.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GGUFType:
    """A tensor type: `block` weights are stored together in `size` bytes.

    `held` are the bits of a weight as CPU kernels keep it, with its part of the scales, where these
    are more than the file's.
    """

    name: str
    block: int
    size: int
    held: float = 0.0

    @property
    def bits(self) -> float:
        """Those of a weight in the file."""
        return 8 * self.size / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row; `columns` is a multiple of `block`."""
        return columns // self.block * self.size


# By the number that a file names the type with.
TYPES = {
    0: GGUFType("F32", 1, 4),
    1: GGUFType("F16", 1, 2),
    2: GGUFType("Q4_0", 32, 18),
    3: GGUFType("Q4_1", 32, 20),
    6: GGUFType("Q5_0", 32, 22),
    7: GGUFType("Q5_1", 32, 24),
    8: GGUFType("Q8_0", 32, 34),
    10: GGUFType("Q2_K", 256, 84, 6.0),
    11: GGUFType("Q3_K", 256, 110, 5.0),
    12: GGUFType("Q4_K", 256, 144, 5.0),
    13: GGUFType("Q5_K", 256, 176, 6.0),
    14: GGUFType("Q6_K", 256, 210, 7.0),
    20: GGUFType("IQ4_NL", 32, 18, 8.5),
    23: GGUFType("IQ4_XS", 256, 136, 8.5),
    30: GGUFType("BF16", 1, 2),
    39: GGUFType("MXFP4", 32, 17, 5.5),
}

# Types that exist but are not read, so that an error can name them.
UNREAD_TYPES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}
