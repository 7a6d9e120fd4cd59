"""Loads models of undeclared families through transformers, and checks that they can be served."""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hagane.kernels.backend import Operations
from hagane.kernels.layout import PagedLayout
from hagane.models.attention import Paged
from hagane.models.config import ModelConfig, Quantization
from hagane.models.undeclared import ATTENTION, UndeclaredTransformer, attend, unsupported
from hagane.system.errors import ModelError
from hagane.weights.load_progress import LoadReport
from hagane.weights.sources.config import load_config

logger = logging.getLogger(__name__)

# Tokens of the trial run, and where it is cut.
_TOKENS, _CUT = 12, 5
_BLOCK = 16
# Part of the hidden states' norm by which both runs may differ.
_TOLERANCE = 0.05


def load_undeclared(
    directory: Path,
    device: str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    operations: Operations,
) -> tuple[UndeclaredTransformer, LoadReport]:
    """The model of `directory`, for serving with `operations`.

    Raises ModelError if transformers cannot read it, or if it keeps anything but keys and values
    between the steps.
    """
    started, config = time.monotonic(), load_config(directory)
    logger.warning(
        "%s: %s is not declared: it runs through transformers' own code, slower, and its results "
        "depend on the batch", directory, config.architecture,
    )  # fmt: skip
    theirs = _read(directory, config, dtype)
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    size = sum(parameter.nbytes for parameter in theirs.parameters())
    model = UndeclaredTransformer(config, theirs.to(device), operations)
    size += model.replace_linears(quantization, dtype)
    model.eval()
    _try(model, torch.device(device), dtype)
    return model, LoadReport(parameters, size, time.monotonic() - started, quantization)


def _read(directory: Path, config: ModelConfig, dtype: torch.dtype) -> Any:
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    AttentionInterface.register(ATTENTION, attend)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(directory), dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=False,
            use_safetensors=True, local_files_only=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise unsupported(config, f"{error}".partition("\n")[0]) from None
    if not model._supports_attention_backend:
        raise unsupported(config, "its attention cannot be replaced")
    return model


@torch.inference_mode()
def _try(model: UndeclaredTransformer, device: torch.device, dtype: torch.dtype) -> None:
    """Compare some tokens at once with the same in two steps: state that no cache keeps shows."""
    config, step = model.config, model.step
    ids = (torch.arange(_TOKENS, device=device) * 7 + 1) % config.vocab_size
    try:
        whole = _run(model, ids, [0, _TOKENS], dtype)
        if step.calls != [1] * config.layers:
            raise unsupported(config, "not every layer attends once")
        parts = _run(model, ids, [0, _CUT, _TOKENS], dtype)
        model.logits(whole)
    except ModelError:
        raise
    except Exception as error:
        raise unsupported(config, f"{type(error).__name__}: {error}".partition("\n")[0]) from error
    difference = (whole.float() - parts.float()).norm() / whole.float().norm()
    if not difference < _TOLERANCE:
        raise unsupported(config, "it keeps more than keys and values between steps")


def _run(model: UndeclaredTransformer, ids: Tensor, cuts: list[int], dtype: torch.dtype) -> Tensor:
    """Hidden states [tokens, hidden], of the tokens between two cuts in one step each."""
    device, config = ids.device, model.config
    caches = [
        model.operations.allocate_cache(1, _BLOCK, config.kv_heads, config.head_dim, dtype, device)
        for _ in range(config.layers)
    ]
    hidden = []
    for start, end in itertools.pairwise(cuts):
        positions = torch.arange(start, end, device=device)
        layout = PagedLayout(
            slots=positions,
            block_tables=torch.zeros(1, 1, dtype=torch.int32, device=device),
            starts=torch.tensor([0, end - start], dtype=torch.int32, device=device),
            lengths=torch.tensor([end], dtype=torch.int32, device=device),
            query_starts=(0, end - start),
            context_lengths=(end,),
            decodes=0,
            block_size=_BLOCK,
        )
        context = Paged(positions, layout, caches, model.operations)
        hidden.append(model(ids[start:end], context))
    return torch.cat(hidden)
