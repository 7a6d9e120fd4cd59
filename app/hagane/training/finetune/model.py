"""The model of a fine-tuning run: a frozen base with a new adapter, or all weights trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hagane.kernels import cpu
from hagane.kernels.cpu import training
from hagane.kernels.devices import resolve_device
from hagane.lora.config import EMBEDDING, HEAD, AdapterConfig
from hagane.lora.files import save_adapter
from hagane.lora.train import attach, factors, use_served_values
from hagane.lora.trained_rows import train_rows, trained_rows
from hagane.models.config import ModelConfig, Quantization
from hagane.models.decoder import Transformer, use_operations
from hagane.models.frozen import use_int8_training
from hagane.models.spec import linear_shapes, part_names
from hagane.system.errors import TrainingError
from hagane.system.machine import available_memory
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.finetune.trained_tokens import token_ids
from hagane.training.jobs import estimates
from hagane.weights.load import load_model, save_model
from hagane.weights.quantize import COMPANIONS
from hagane.weights.sources.config import load_config, model_name


@dataclass(frozen=True, eq=False)
class FineTuneModel:
    """A transformer in training; `adapter` is None if all of its weights are trained.

    Trained parameters are float32; the frozen base and all computation are in `dtype`.
    """

    transformer: Transformer
    adapter: AdapterConfig | None
    source: Path
    device: torch.device
    dtype: torch.dtype

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.transformer.parameters() if p.requires_grad]

    def autocast(self) -> torch.autocast:
        """Compute in `dtype` from float32 weights; an adapter's layers convert by themselves."""
        enabled = self.adapter is None and self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def save(self, directory: Path) -> None:
        """Write a PEFT directory, or a standalone model's."""
        if self.adapter is not None:
            model = self.transformer
            save_adapter(directory, self.adapter, factors(model, self.adapter), trained_rows(model))
            return
        save_model(self.transformer, directory, dtype=getattr(torch, self.transformer.config.dtype))
        for name in COMPANIONS:
            if (self.source / name).is_file():
                shutil.copyfile(self.source / name, directory / name)


def load_finetune_model(
    spec: FineTuneSpec,
    longest: int,
    *,
    checkpointing: bool | None = None,
    native: bool = True,
    served: bool = False,
    free: int | None = None,
) -> FineTuneModel:
    """Load the model of `spec`, for examples of up to `longest` tokens.

    `checkpointing` recomputes layers in the backward pass; None: if memory is short. Hagane's
    kernels train an adapter where they are available, unless `native` is False; `served` lets them
    compute the very values of serving, after each `place_factors`. `free` are the bytes of the
    device's memory that the run may use; None: what is free now.
    Raises ModelError for a model that cannot be read and TrainingError for too little memory.
    """
    device = resolve_device(spec.device)
    config = load_config(spec.model)
    dtype = training_dtype(spec.dtype, config, device)
    short = _memory_is_short(config, spec, longest, free_bytes(device) if free is None else free)
    # As serving quantizes it.
    coarse = None
    if spec.quantize != "none":
        coarse = Quantization.choose(spec.quantize, cpu=device.type == "cpu")
    model, _ = load_model(
        spec.model,
        device=str(device),
        dtype=torch.float32 if spec.full else dtype,
        quantization=coarse,
    )
    adapter = None
    if not spec.full:
        adapter = _adapter_config(spec, model.config)
        _check_targets(config, adapter)
        attach(model, adapter, torch.Generator().manual_seed(spec.seed))
        if native and training.usable(device, dtype):
            cpu.start_beside_torch(spec.threads)
            use_operations(model, training)
            use_int8_training(model, dtype)
            if served:
                packed, _ = load_model(
                    spec.model,
                    device="cpu",
                    dtype=dtype,
                    quantization=coarse,
                    operations=cpu,
                )
                use_served_values(model, packed)
        if adapter.token_ids:
            train_rows(model, adapter.token_ids[EMBEDDING])
    if short if checkpointing is None else checkpointing:
        for layer in model.model.layers:
            layer.forward = _recomputed(layer.forward)
    return FineTuneModel(model, adapter, spec.model, device, dtype)


def _adapter_config(spec: FineTuneSpec, config: ModelConfig) -> AdapterConfig:
    """By the family's own names of modules, of which one may be several of Llama's."""
    names = part_names(config)
    targets = dict.fromkeys(names[name] for name in spec.target_modules if name in names)
    modules = (EMBEDDING,) if config.tie_word_embeddings else (EMBEDDING, HEAD)
    tokens = token_ids(spec.model, spec.trained_tokens)
    return AdapterConfig(
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=tuple(targets),
        rslora=spec.rslora,
        dora=spec.dora,
        base_model=model_name(spec.model),
        token_ids=dict.fromkeys(modules, tokens) if tokens else {},
    )


def _check_targets(config: ModelConfig, adapter: AdapterConfig) -> None:
    """Raises TrainingError if nothing would be trained."""
    shapes = linear_shapes(config)
    if not adapter.resolve(list(shapes)):
        names = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in shapes))
        experts = "; experts are not adapted" if config.mixed else ""
        raise TrainingError(
            f"target_modules names no matrix that an adapter changes: there are {names}{experts}",
            code="invalid_model",
        )


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep only a layer's input, and recompute it in the backward pass (Chen et al., 2016)."""

    def run(*arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        out: Tensor = checkpoint(forward, *arguments, use_reentrant=False)
        return out

    return run


def free_bytes(device: torch.device, free_memory: Callable[[], int] = available_memory) -> int:
    """What is free of the memory of `device`; of main memory by `free_memory`."""
    if device.type != "cuda":
        return free_memory()
    free, total = torch.cuda.mem_get_info(device)
    # A job may only use a fraction of the device.
    return min(free, int(total * torch.cuda.get_per_process_memory_fraction(device)))


def _memory_is_short(config: ModelConfig, spec: FineTuneSpec, longest: int, free: int) -> bool:
    """Whether the run needs checkpointing. Raises TrainingError if that is not enough either."""
    least = estimates.memory(config, spec, longest, checkpointing=True)
    if least > free:
        raise TrainingError(
            f"the run needs about {least / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: shorten "
            "sequence_length, lower rank, or quantize the base; a job's part of a GPU is "
            "job_gpu_memory_fraction",
            code="out_of_memory",
        )
    return estimates.memory(config, spec, longest, checkpointing=False) > 0.8 * free


def training_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """Resolve `name`; "auto" is bfloat16 for a 16-bit model where that is not slower."""
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if config.dtype == "float32":
        return torch.float32
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
