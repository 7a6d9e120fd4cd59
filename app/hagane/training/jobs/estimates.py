"""Rough estimates of a run's time and memory from the model's shape. Needs no torch."""

from __future__ import annotations

from hagane.models.config import ModelConfig
from hagane.models.spec import projections
from hagane.system.machine import cuda_driver_present, usable_cores
from hagane.system.weight_formats import WEIGHT_FORMATS
from hagane.training.finetune.spec import FineTuneSpec, TrainingPlan

# Tokens of one forward and backward pass: enough for full speed, few enough for little memory.
MICRO_TOKENS = 1024
# The same where attention repeats a prompt for each of its answers in reinforcement: one layer at
# a time has these.
REPEATED_TOKENS = 8 * MICRO_TOKENS
# Orders of magnitude, in FLOP/s: a Zen 4 core in bfloat16, the same on a quantized base, and a
# server GPU.
_CORE, _CORE_IN_INTEGERS, _GPU = 1.8e11, 3.6e11, 2e14
# Of such a core, for what lies between the products, per value of a layer and pass: it is most of
# the time of a small model. Both by `benchmarks/estimates.py`.
_VALUE_SECONDS = 1.1e-9
# Operations for each weight and token: two in each direction, forward again for the base below the
# adapter, and for KTO's reference point both of them; of a training token and of a held-out one.
_PASSES = {
    "supervised": (4.0, 2.0),
    "orpo": (4.0, 2.0),
    "dpo": (6.0, 4.0),
    "kto": (10.0, 8.0),
    "reinforcement": (4.0, 0.0),
}
# As many as if a token of an answer went forward this often: decoding waits for memory.
_ANSWERING = 4.0
# Until a process has imported torch and read its model; an engine takes as long.
_START_SECONDS = 5.0
_LOGIT_ROWS = 256
# Layers whose values a run has at its peak if it computes them once more: by the 5.2 GB of 8,192
# tokens on Qwen2.5-Coder 0.5B in int8, against 11.6 GB with all of them.
_LAYERS_AGAIN = 6
# Of a further rank's process, before it has a model: torch.
_RANK_BYTES = 300 << 20
# Bytes of the KV cache of an engine that answers for a run.
ANSWERING_CACHE = 512 << 20


def parameters(config: ModelConfig) -> int:
    """Count weights of the layers' matrices, without embeddings."""
    return sum(spec.rows * spec.columns for _, spec in projections(config))


def active_parameters(config: ModelConfig) -> int:
    """Those of `parameters` that a token uses: of experts, the chosen ones."""
    unused = 0
    for spec in config.layer_specs:
        if spec.experts is not None:
            idle = spec.experts.count - spec.experts.routing.chosen
            matrices = 3 if config.gated else 2
            unused += idle * matrices * spec.experts.features * config.hidden_size
    return parameters(config) - unused


def seconds(
    config: ModelConfig, spec: FineTuneSpec, plan: TrainingPlan, tokens: int, held_out: int
) -> float:
    """Seconds of a run over `tokens` tokens per epoch, from its start to its result.

    `held_out` tokens are scored before the first step and at every checkpoint.
    """
    trained, scored = _PASSES[spec.method]
    trained += 2.0 if spec.full else 0.0
    # Forward once more.
    trained += 2.0 if spec.checkpointing else 0.0
    passes = plan.epochs * tokens * trained + held_out * scored * (len(plan.checkpoints) + 1)
    return _START_SECONDS + passes * _pass_seconds(config, spec)


def answering_seconds(
    config: ModelConfig, spec: FineTuneSpec, plan: TrainingPlan, tokens: int, held_out: int
) -> float:
    """Those of answers in a run of reinforcement, as `seconds` counts tokens."""
    answered = plan.epochs * tokens + held_out * (len(plan.checkpoints) + 1)
    return _START_SECONDS + answered * _ANSWERING * _pass_seconds(config, spec)


def _pass_seconds(config: ModelConfig, spec: FineTuneSpec) -> float:
    """Seconds of an operation of every weight on one token."""
    weights = active_parameters(config) + config.vocab_size * config.hidden_size
    if spec.device != "cpu" and cuda_driver_present():
        return weights / (_GPU * spec.data_parallel)
    core = _CORE if spec.quantize == "none" else _CORE_IN_INTEGERS
    alone = weights / core + config.layers * _values(config) * _VALUE_SECONDS
    return alone / (spec.threads or len(usable_cores()))


def answering(config: ModelConfig, spec: FineTuneSpec, longest: int) -> int:
    """Bytes of the engine that answers in a run of reinforcement learning: weights and KV cache.

    `longest` is in tokens, prompt and answer.
    """
    width = 2 * config.kv_heads * config.head_dim
    if config.latent is not None and _learns_from_served(spec):
        width = config.latent.rank + config.rope.rotated
    token = 2 * config.layers * width
    return int(_served_weights(config, spec)) + max(ANSWERING_CACHE, token * longest)


def shared_memory(
    config: ModelConfig, spec: FineTuneSpec, longest: int, *, checkpointing: bool
) -> int:
    """As `memory`, of all ranks that share one: all on a CPU, while each GPU has its own."""
    alone = memory(config, spec, longest, checkpointing=checkpointing)
    if spec.device != "cpu" and cuda_driver_present():
        return alone
    return spec.data_parallel * alone + (spec.data_parallel - 1) * _RANK_BYTES


def _served_weights(config: ModelConfig, spec: FineTuneSpec) -> float:
    """Bytes of the model as serving packs it."""
    coarse = WEIGHT_FORMATS.get(spec.quantize)
    width = 2.0 if coarse is None else coarse.bits / 8
    return width * (parameters(config) + config.vocab_size * config.hidden_size)


def _learns_from_served(spec: FineTuneSpec) -> bool:
    """Whether a run loads the packed weights of serving beside its own: on a CPU."""
    on_cpu = spec.device == "cpu" or not cuda_driver_present()
    return spec.method == "reinforcement" and on_cpu


def _inner_features(config: ModelConfig) -> int:
    """The most that a token has between the projections of MLPs in one layer."""
    return max(
        config.intermediate_size
        if spec.experts is None
        else spec.experts.routing.chosen * spec.experts.features + spec.experts.shared
        for spec in config.layer_specs
    )


def _values(config: ModelConfig) -> int:
    """Those that a layer keeps of a token for the backward pass."""
    row = 6 * config.hidden_size + 4 * _inner_features(config)
    return row + 3 * (config.heads + config.kv_heads) * config.head_dim


def memory(config: ModelConfig, spec: FineTuneSpec, longest: int, *, checkpointing: bool) -> int:
    """Peak bytes of a run whose longest example has `longest` tokens."""
    embedding = config.vocab_size * config.hidden_size
    embeddings = embedding * (1 if config.tie_word_embeddings else 2)
    coarse = WEIGHT_FORMATS.get(spec.quantize)
    width = 2.0 if coarse is None else coarse.training_bytes
    # For the backward pass the head is kept in 16 bits, too.
    ends = 2.0 * embeddings if spec.quantize == "none" else embeddings + 2.0 * embedding
    tokens = max(MICRO_TOKENS, longest)
    if spec.full:
        # float32 weights, gradients and Adam's two moments.
        weights = 16.0 * (parameters(config) + embeddings)
    else:
        ratio = 2 * spec.rank / config.hidden_size
        weights = parameters(config) * (width + 16 * ratio) + ends
    row = _values(config)
    if spec.dora:
        # The outputs of the projections before their rows are scaled.
        row += 2 * config.hidden_size + 2 * _inner_features(config)
        row += (config.heads + 2 * config.kv_heads) * config.head_dim
    # Of a layer that is computed again: its values, their gradients, and what the allocator keeps.
    again = min(_LAYERS_AGAIN, max(config.layers / 2, 1))
    stored = 2.0 * tokens * (again * row + config.layers * config.hidden_size)
    if not checkpointing:
        stored = 2.0 * tokens * row * config.layers
    if spec.method == "reinforcement":
        # Queries, keys, values and what comes out, each with its gradient.
        repeated = 4 * (config.heads + config.kv_heads) * config.head_dim
        stored += 2.0 * max(REPEATED_TOKENS, longest) * repeated
    logits = 10.0 * _LOGIT_ROWS * config.vocab_size
    served = _served_weights(config, spec) if _learns_from_served(spec) else 0.0
    if spec.dora:
        # Its layers do without: they are given up before the first step.
        return int(weights + max(served, stored + logits))
    return int(weights + served + stored + logits)
