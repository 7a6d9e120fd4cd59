"""Models of undeclared families: transformers' own code with the linear layers and attention of
this server.

transformers computes norms, rotations, activations and mixtures through torch. Its linear layers
are replaced, and its attention is the context's: the paged cache in serving.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hagane.kernels.backend import Operations
from hagane.kernels.layout import Scoring
from hagane.models.attention import AttentionContext, RowSelection
from hagane.models.config import CacheSpec, ModelConfig, Quantization
from hagane.models.decoder import Transformer
from hagane.models.formats.dense import Dense
from hagane.models.linear import make_linear
from hagane.models.serving_layers import for_serving
from hagane.system.errors import ModelError

# The name under which transformers calls `attend`.
ATTENTION = "hagane"
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class Step:
    """What the parts of a model share while a batch runs."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.context: AttentionContext | None = None
        # How often each layer has attended.
        self.calls: list[int] = [0] * config.layers

    def running(self) -> AttentionContext:
        if self.context is None:
            raise RuntimeError("no batch runs")
        return self.context


class ContextLinear(nn.Module):
    """A linear layer in the place of transformers' own: x [1, tokens, in] -> [1, tokens, out]."""

    def __init__(self, layer: nn.Module, step: Step | None) -> None:
        super().__init__()
        self.layer, self._step = layer, step

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self._step is None:
            out: Tensor = self.layer(rows)
        else:
            out = self._step.running().linear(self.layer, rows)
        return out.view(*x.shape[:-1], -1)


class _Outputs:
    """What a decoder of transformers returns: hidden states first, and nothing else."""

    def __init__(self, hidden: Tensor | None) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, _: int) -> Tensor | None:
        return self.last_hidden_state

    def __getattr__(self, _: str) -> None:
        return None


class _Given(nn.Module):
    """Stands for a decoder whose hidden states are there already."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> _Outputs:
        return _Outputs(self.hidden)


class UndeclaredTransformer(Transformer):
    """`theirs` is transformers' model with its head, on its device and in its dtype."""

    def __init__(self, config: ModelConfig, theirs: Any, operations: Operations) -> None:
        nn.Module.__init__(self)
        self.config, self.operations = config, operations
        self.step = Step(config)
        self.theirs = theirs
        prefix = theirs.base_model_prefix
        self.decoder, self._given = getattr(theirs, prefix), _Given()
        setattr(theirs, prefix, self._given)
        for module in self.decoder.modules():
            module.hagane_step = self.step

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        config = self.config
        return (CacheSpec(config.kv_heads, config.head_dim),) * config.layers

    def forward(
        self,
        token_ids: Tensor,
        context: AttentionContext,
        selection: RowSelection | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """int64 ids [tokens] -> final hidden states [tokens, hidden]; only of these arguments."""
        self.step.context = context
        try:
            out = self.decoder(
                input_ids=token_ids[None], position_ids=context.positions[None], use_cache=False
            )
        finally:
            self.step.context = None
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab], scaled and bounded as the family does."""
        self._given.hidden = hidden[None]
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        scores: Tensor = self.theirs(input_ids=ids, use_cache=False).logits[0]
        return scores.float()

    @torch.no_grad()
    def replace_linears(self, quantization: Quantization | None, dtype: torch.dtype) -> int:
        """Compute with this server's linear layers; returns how many more bytes they have."""
        size, routers = 0, _expert_counts(self.config)
        # Not the layers themselves: each is freed when it is replaced.
        owners = [module for module in self.decoder.modules() if any(module.children())]
        for owner in owners:
            for name in [name for name, _ in owner.named_children()]:
                weight, bias = _parameters(getattr(owner, name))
                # A near tie in a router decides between two experts: it stays as it is.
                if weight is None or len(weight) in routers:
                    continue
                made, own = _convert(weight, bias, quantization, dtype, self.operations)
                setattr(owner, name, ContextLinear(made, self.step))
                size += own - weight.nbytes
        head = self.theirs.get_output_embeddings()
        tied = head is not None and head.weight is self.decoder.get_input_embeddings().weight
        if head is not None and type(head) is nn.Linear and not tied:
            form = quantization and Quantization("int8", rotated=quantization.rotated)
            made, own = _convert(head.weight, head.bias, form, dtype, self.operations)
            self.theirs.set_output_embeddings(ContextLinear(made, None))
            size += own - head.weight.nbytes
        return size


def _parameters(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """Matrix [out, in] and bias of a linear layer of transformers; None of any other."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    return None, None


def _expert_counts(config: ModelConfig) -> set[int]:
    """How many experts a router of the model may choose from."""
    found = [config.raw.get(key) for key in _EXPERT_COUNTS]
    counts = [count for each in found for count in (each if isinstance(each, list) else [each])]
    return {count for count in counts if isinstance(count, int)}


def _convert(
    weight: Tensor,
    bias: Any,
    quantization: Quantization | None,
    dtype: torch.dtype,
    operations: Operations,
) -> tuple[nn.Module, int]:
    """A layer for serving with these values, and its bytes before it is packed."""
    rows, columns = weight.shape
    layer = make_linear(columns, rows, bias=bias is not None, quantization=quantization)
    tensors = {"weight": weight} if isinstance(layer, Dense) else layer.quantize(weight)  # type: ignore[operator]
    for key, tensor in tensors.items():
        parameter = key in layer._parameters
        setattr(layer, key, nn.Parameter(tensor, requires_grad=False) if parameter else tensor)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    size = sum(tensor.nbytes for tensor in tensors.values())
    return for_serving(layer, operations, dtype), size


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, width] -> [1, tokens, heads, width].

    Raises ModelError for attention that is not causal, has a mask of its own, or other shapes than
    the cache.
    """
    step: Step = module.hagane_step
    layer = getattr(module, "layer_idx", None)
    config = step.config
    shape = config.kv_heads, config.head_dim
    if attention_mask is not None or not getattr(module, "is_causal", True) or layer is None:
        raise unsupported(config, "its attention is not plainly causal")
    if (key.shape[1], key.shape[3]) != shape or value.shape != key.shape:
        raise unsupported(config, f"its keys are {key.shape[1]} x {key.shape[3]}, not {shape}")
    window = sliding_window or config.layer_specs[layer].window
    scale = config.head_dim**-0.5 if scaling is None else scaling
    sinks = None if s_aux is None else s_aux.float()
    scoring = Scoring(scale, window, softcap or 0.0, sinks)
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    step.calls[layer] += 1
    out = step.running().attention(layer, q, k, v, scoring)
    return out.view(1, len(q), q.shape[1], -1), None


def unsupported(config: ModelConfig, reason: object) -> ModelError:
    return ModelError(
        f"{config.architecture} is not declared, and cannot be served through transformers' code: "
        f"{reason}"
    )
