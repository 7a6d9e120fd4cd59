"""Eight-bit floats, one scale per output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hagane.kernels import cpu
from hagane.models.formats.layer import QuantizedLinear, added, make_bias
from hagane.models.serving_layers import CudaLinear, Packed


class Fp8(QuantizedLinear):
    """Weights in e4m3 (Micikevicius et al., 2022, arXiv:2209.05433).

    Small weights keep their relative precision of 4 bits, where int8 gives all the same step.
    """

    weight_fp8: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.register_buffer(
            "weight_fp8", torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        )
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.float32))
        self.bias = make_bias(out_features, bias)

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        wide = weight.float()
        scale = wide.abs().amax(dim=1).clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
        return {"weight_fp8": (wide / scale[:, None]).to(torch.float8_e4m3fn), "scale": scale}

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return (self.weight_fp8.float() * self.scale[:, None]).to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return added(F.linear(x, self.matrix(x.dtype), self.bias), residual)

    def for_cpu(self, dtype: torch.dtype) -> nn.Module:
        # CPUs do not compute in 8-bit floats: as large and as fast as dense weights.
        return Packed(cpu.pack_dense(self.matrix(dtype), self.bias))

    def for_cuda(self) -> nn.Module:
        from hagane.kernels.cuda import linear

        return CudaLinear(linear.fp8, (self.weight_fp8, self.scale), self.bias)
