"""Serving on the CPU through Hagane's own C++ kernels: the backend `cpu`."""

from hagane.kernels.cpu.extension import find_nonfinite
from hagane.kernels.cpu.operations import (
    allocate_cache,
    angles,
    attend,
    draw,
    embed,
    fetch,
    gather,
    greatest,
    linear,
    rms_norm,
    rotate,
    silu_and_mul,
)
from hagane.kernels.cpu.packing import (
    LANES,
    NonFiniteError,
    PackedWeight,
    pack_dense,
    pack_grouped,
    pack_int4,
    pack_int8,
    pack_quantized,
    padded,
    quantize,
    quantize_rows,
)
from hagane.kernels.cpu.recording import record
from hagane.kernels.cpu.threads import available, instruction_set, start, start_beside_torch

__all__ = [
    "LANES",
    "NonFiniteError",
    "PackedWeight",
    "allocate_cache",
    "angles",
    "attend",
    "available",
    "draw",
    "embed",
    "fetch",
    "find_nonfinite",
    "gather",
    "greatest",
    "instruction_set",
    "linear",
    "pack_dense",
    "pack_grouped",
    "pack_int4",
    "pack_int8",
    "pack_quantized",
    "padded",
    "quantize",
    "quantize_rows",
    "record",
    "rms_norm",
    "rotate",
    "silu_and_mul",
    "start",
    "start_beside_torch",
]
