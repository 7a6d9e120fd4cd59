"""Every operation of serving through Triton kernels, for CUDA devices.

Imported only where it is chosen: importing Triton takes a while. With TRITON_INTERPRET=1 set before
that, the same kernels run on the CPU, slowly: that is how they are tested without a device.
"""

from hagane.kernels.cuda.attention import attend
from hagane.kernels.cuda.rows import rms_norm, rotate, silu_and_mul
from hagane.kernels.cuda.sampling import draw
from hagane.kernels.reference import allocate_cache, angles, greatest

__all__ = [
    "allocate_cache",
    "angles",
    "attend",
    "draw",
    "greatest",
    "rms_norm",
    "rotate",
    "silu_and_mul",
]
