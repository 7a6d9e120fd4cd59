"""The operations of the forward pass, each named once with one signature.

Floating tensors share one dtype (float32, bfloat16 or float16) unless said otherwise; `tokens` is
the number of rows of the flat ragged batch.

| operation | does |
|---|---|
| `rms_norm` | root-mean-square normalisation of rows |
| `silu_and_mul` | SwiGLU's gate: silu(gate) * up |
| `apply_rope` | rotates queries and keys |
| `causal_attention` | attention inside equally long rows, without a cache (training) |
| `store_kv` | writes new keys and values into their cache slots |
| `paged_attention` | attention of new tokens over block-table-addressed cache |
"""

from app.kernels.reference import (
    PagedLayout,
    apply_rope,
    causal_attention,
    paged_attention,
    rms_norm,
    silu_and_mul,
    store_kv,
)

__all__ = [
    "PagedLayout",
    "apply_rope",
    "causal_attention",
    "paged_attention",
    "rms_norm",
    "silu_and_mul",
    "store_kv",
]
