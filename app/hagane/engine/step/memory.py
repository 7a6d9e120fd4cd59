"""How much of a GPU's memory is left for the KV cache."""

from __future__ import annotations

import torch

from hagane.kernels.layout import PagedLayout
from hagane.models.attention import Paged
from hagane.models.decoder import Transformer
from hagane.pool.messages import EngineConfig


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
    shape = (blocks, block_size, model.config.kv_heads, model.config.head_dim)
    cache = model.operations.allocate_cache(*shape, dtype, device)
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
