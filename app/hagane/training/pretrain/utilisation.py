"""Model-FLOPs utilisation (MFU): the model's FLOP/s as a fraction of the device's peak."""

from __future__ import annotations

from dataclasses import dataclass

from hagane.models.decoder import Transformer

# Dense bfloat16 FLOP/s with float32 accumulation, from the manufacturers' data sheets. The first
# key that is part of the device's name counts.
_PEAKS = {
    "GH200": 990e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class Utilisation:
    """A run's FLOPs per token, forward and backward, and the peak FLOP/s of all its devices."""

    flops_per_token: float
    peak: float

    @classmethod
    def of(
        cls, model: Transformer, length: int, gpu: str | None, devices: int
    ) -> Utilisation | None:
        """For `devices` GPUs named `gpu`; None without a GPU or if its peak is unknown."""
        peak = next((peak for part, peak in _PEAKS.items() if part in (gpu or "")), None)
        return None if peak is None else cls(flops_per_token(model, length), peak * devices)

    def at(self, tokens_per_second: float) -> float:
        """The utilisation at this rate, between 0 and 1."""
        return self.flops_per_token * tokens_per_second / self.peak


def flops_per_token(model: Transformer, length: int) -> float:
    """FLOPs of the forward and backward pass for one token, in rows of `length` tokens.

    Counted as in Chowdhery et al., 2022, arXiv:2204.02311, appendix B: 6 for each weight of a
    matrix, and in attention 12 for each feature and position, masked or not. The embedding lookup
    counts as none.
    """
    config = model.config
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    if not config.tie_word_embeddings:
        matrices -= config.vocab_size * config.hidden_size
    attention = config.layers * config.heads * config.head_dim * length
    return 6.0 * matrices + 12.0 * attention
