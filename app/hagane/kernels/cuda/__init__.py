"""Every operation of serving through Triton kernels, for CUDA devices.

Imported only where it is chosen: importing Triton takes a while. With TRITON_INTERPRET=1 set before
that, the same kernels run on the CPU, slowly: that is how they are tested without a device.
"""

from hagane.kernels.cuda.attention import paged_attention
from hagane.kernels.cuda.rows import apply_rope, rms_norm, silu_and_mul
from hagane.kernels.cuda.sampling import sample
from hagane.kernels.reference import (
    activate,
    allocate_cache,
    argmax,
    gate_rows,
    heaviest,
    latent_heads,
    layer_norm,
    narrow_heads,
    restrict,
    rope_tables,
    route,
    samples,
    scaled_add,
    softcap,
)

__all__ = [
    "activate",
    "allocate_cache",
    "apply_rope",
    "argmax",
    "gate_rows",
    "heaviest",
    "latent_heads",
    "layer_norm",
    "narrow_heads",
    "paged_attention",
    "restrict",
    "rms_norm",
    "rope_tables",
    "route",
    "sample",
    "samples",
    "scaled_add",
    "silu_and_mul",
    "softcap",
]
