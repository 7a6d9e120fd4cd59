"""Loads models of undeclared families through transformers, and checks that they can be served."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hagane.kernels.backend import Operations
from hagane.kernels.layout import PagedLayout
from hagane.models.attention import Paged
from hagane.models.config import ModelConfig, Quantization
from hagane.models.undeclared import ATTENTION, UndeclaredTransformer, attend, unsupported
from hagane.system.errors import HaganeError
from hagane.weights.finite import check_finite
from hagane.weights.load_progress import LoadReport
from hagane.weights.pages import trim_heap
from hagane.weights.sources.config import load_config

logger = logging.getLogger(__name__)

# Tokens of the trial run, and where it is cut.
_TOKENS, _CUT = 12, 5
_BLOCK = 16
# Part of the hidden states' norm by which both runs may differ.
_TOLERANCE = 0.05
# The same of logits, less their mean, of this server's attention and transformers' own: rounding
# makes it 0.028 in Qwen2.5-Coder 0.5B in bfloat16.
_LOGIT_TOLERANCE = 0.1
_ADAPTER = "adapter_config.json"


def load_undeclared(
    directory: Path,
    device: str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    operations: Operations,
) -> tuple[UndeclaredTransformer, LoadReport]:
    """The model of `directory`, for serving with `operations`.

    Raises ModelError if transformers cannot read it whole, if it computes something else with this
    server's attention, or if it keeps anything but keys and values between the steps.
    """
    started, config = time.monotonic(), load_config(directory)
    logger.warning(
        "%s: %s is not declared: it runs through transformers' own code, slower, and its results "
        "depend on the batch", directory, config.architecture,
    )  # fmt: skip
    with _refusing(config):
        theirs = _read(directory, config, dtype).to(device)
        parameters = sum(parameter.numel() for parameter in theirs.parameters())
        size = sum(parameter.nbytes for parameter in theirs.parameters())
        ids = (torch.arange(_TOKENS, device=device) * 7 + 1) % config.vocab_size
        expected = _own_logits(theirs, ids)
        model = UndeclaredTransformer(config, theirs, operations)
        model.eval()
        _compare(model, ids, expected, dtype)
        size += model.replace_linears(quantization, dtype)
        trim_heap()
        _try(model, ids, dtype)
    return model, LoadReport(parameters, size, time.monotonic() - started, quantization)


@contextmanager
def _refusing(config: ModelConfig) -> Iterator[None]:
    """Turns whatever transformers' code raises into a ModelError that says it."""
    try:
        yield
    except (HaganeError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise unsupported(config, reason) from error


def _read(directory: Path, config: ModelConfig, dtype: torch.dtype) -> Any:
    """transformers' model, every weight of which is in the files, and a number."""
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    if (directory / _ADAPTER).exists():
        raise unsupported(
            config, f"transformers would change its weights by the adapter of {_ADAPTER}: move "
            "that file to a directory of its own",
        )  # fmt: skip
    disable_progress_bar()  # type: ignore[no-untyped-call]
    AttentionInterface.register(ATTENTION, attend)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=False,
        use_safetensors=True, local_files_only=True, output_loading_info=True,
    )  # fmt: skip
    model, found = loaded
    # transformers fills them with random numbers.
    if absent := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise unsupported(config, f"tensor {absent[0]} is missing or has another shape")
    for name, parameter in model.named_parameters():
        check_finite(directory, name, torch.atleast_1d(parameter.detach()))
    if not model._supports_attention_backend:
        raise unsupported(config, "its attention cannot be replaced")
    return model.eval()


@torch.inference_mode()
def _own_logits(theirs: Any, ids: Tensor) -> Tensor:
    """float32 [tokens, vocab] of `ids` [tokens] by transformers alone, positions included."""
    theirs.set_attn_implementation("eager")
    logits: Tensor = theirs(input_ids=ids[None], use_cache=False).logits[0].float()
    theirs.set_attn_implementation(ATTENTION)
    return logits


@torch.inference_mode()
def _compare(
    model: UndeclaredTransformer, ids: Tensor, expected: Tensor, dtype: torch.dtype
) -> None:
    """Refuse a model whose linear layers are still its own, if its logits are not the expected."""
    got = model.logits(_run(model, ids, [0, len(ids)], dtype))
    centered = expected - expected.mean(dim=1, keepdim=True)
    difference = got - got.mean(dim=1, keepdim=True) - centered
    if not difference.norm() <= _LOGIT_TOLERANCE * centered.norm():
        raise unsupported(
            model.config, "with this server's positions and attention it computes something else"
        )


@torch.inference_mode()
def _try(model: UndeclaredTransformer, ids: Tensor, dtype: torch.dtype) -> None:
    """Compare some tokens at once with the same in two steps: state that no cache keeps shows."""
    model.step.calls = [0] * model.config.layers
    whole = _run(model, ids, [0, _TOKENS], dtype)
    if model.step.calls != [1] * model.config.layers:
        raise unsupported(model.config, "not every layer attends once")
    parts = _run(model, ids, [0, _CUT, _TOKENS], dtype)
    difference = (whole.float() - parts.float()).norm() / whole.float().norm()
    if not difference < _TOLERANCE:
        raise unsupported(model.config, "it keeps more than keys and values between steps")
    model.logits(whole)


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
