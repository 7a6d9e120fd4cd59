"""The memory of the KV cache: its dtype, and how much of a GPU's is left for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hagane.kernels.layout import PagedLayout
from hagane.models.attention import Paged
from hagane.models.config import CacheSpec, Quantization
from hagane.models.decoder import Transformer
from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError
from hagane.system.weight_formats import WEIGHT_FORMATS

# Where attention multiplies an int8 cache's codes as they are, half the bytes to read, for heads of
# whole lines; others expand codes. AMX does so too, but has tiles for bfloat16: which of them is
# faster there has not been measured.
_INT8_CACHE_SETS = ("avx512", "avx512_bf16")
_INT8_CACHE_FEATURES = 32


def choose_cache_dtype(
    config: EngineConfig,
    caches: Sequence[CacheSpec],
    quantization: Quantization | None,
    dtype: torch.dtype,
    instructions: str | None,
) -> torch.dtype:
    """The dtype of keys and values for a model with `caches` that computes in `dtype`.

    `instructions` is the set that the native kernels use, None for other backends. Raises
    ConfigurationError for an int8 cache without native kernels.
    """
    wanted = config.kv_cache_dtype
    if wanted == "int8" and instructions is None:
        raise ConfigurationError(
            "kv_cache_dtype int8 needs the native CPU kernels, in float32 or bfloat16: "
            "leave it at auto"
        )
    if wanted == "auto" and quantization is not None:
        # Other formats are dense on a CPU: users of those want small values kept precisely.
        coarse = WEIGHT_FORMATS[quantization.format].integer
        # Where heads share keys, products take longer than reading: fewer bytes gain nothing.
        whole = all(c.head_dim % _INT8_CACHE_FEATURES == 0 and not c.shared for c in caches)
        if coarse and whole and instructions in _INT8_CACHE_SETS:
            wanted = "int8"
    return torch.int8 if wanted == "int8" else dtype


def cuda_cache_memory(
    model: Transformer, config: EngineConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> int:
    """Bytes of `gpu_memory_fraction` that remain after weights, other programs, a full step
    and the adapters that requests will need. For an engine that `shares_device` with another one,
    the fraction is its own, and other programs do not count.

    The need of a step is measured by running one of `tokens` tokens, the most that one ever has.
    """
    rows = min(config.max_sequences, tokens)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_full_step(model, tokens, rows, config.block_size, device, dtype)
    step = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return remaining_memory(config, free, total, torch.cuda.memory_reserved(device), step)


def remaining_memory(config: EngineConfig, free: int, total: int, reserved: int, step: int) -> int:
    """As `cuda_cache_memory`: `reserved` bytes are this process's, `step` those of a full step."""
    taken = reserved if config.shares_device else total - free
    allowed = min(int(total * config.gpu_memory_fraction) - taken, free)
    return max(allowed - step - config.adapter_memory, 0)


@torch.inference_mode()
def run_full_step(
    model: Transformer,
    tokens: int,
    rows: int,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """A prefill of `tokens` tokens and the logits of `rows` of them; compiles the kernels, too."""
    blocks = -(-tokens // block_size)
    spec = model.caches[0]
    shape = (blocks, block_size, spec.kv_heads, spec.head_dim)
    cache = model.operations.allocate_cache(*shape, dtype, device, shared=spec.shared)
    positions = torch.arange(tokens, device=device)
    layout = PagedLayout(
        slots=positions,
        block_tables=torch.arange(blocks, dtype=torch.int32, device=device)[None],
        starts=torch.tensor([0, tokens], dtype=torch.int32, device=device),
        lengths=torch.tensor([tokens], dtype=torch.int32, device=device),
        query_starts=(0, tokens),
        context_lengths=(tokens,),
        decodes=int(tokens == 1),
        block_size=block_size,
    )
    # All layers may write to the same cache: nobody reads what they leave there.
    context = Paged(positions, layout, (cache,) * model.config.layers, model.operations)
    model.logits(model(torch.zeros_like(positions), context)[:rows])
