"""What a run will cost, from the model's shape alone: rough, and needing no torch."""

from __future__ import annotations

from app.training.spec import FineTuneSpec, Plan
from app.transformer.config import ModelConfig

# Tokens that go through the model together: enough for full speed, few enough for little memory.
MICRO_TOKENS = 1024
# Floating-point operations per second; of one machine of two cores, and only an order of magnitude.
_RATE = 2e11
_LOGIT_ROWS = 256


def parameters(config: ModelConfig) -> int:
    """Weights of the layers' matrices, without embeddings."""
    attention = config.hidden_size * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return config.layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def seconds(config: ModelConfig, plan: Plan, tokens: int) -> float:
    """Of a whole run over `tokens` tokens an epoch."""
    head = config.vocab_size * config.hidden_size
    return plan.epochs * tokens * 4.0 * (parameters(config) + head) / _RATE


def memory(config: ModelConfig, spec: FineTuneSpec, longest: int, *, checkpointing: bool) -> int:
    """Bytes at the peak, when the longest example has `longest` tokens."""
    embeddings = config.vocab_size * config.hidden_size
    embeddings *= 1 if config.tie_word_embeddings else 2
    # Of 8 and 4 bits a CPU also keeps the transpose, in 8 bits, for the way back.
    width = {"none": 2.0, "int8": 2.0, "fp8": 1.0, "int4": 1.56}[spec.quantize]
    tokens = max(MICRO_TOKENS, longest)
    if spec.full:
        # float32 weights, gradients and two moments of Adam.
        weights = 16.0 * (parameters(config) + embeddings)
    else:
        ratio = 2 * spec.rank / config.hidden_size
        weights = parameters(config) * (width + 16 * ratio) + 2.0 * embeddings
    row = 6 * config.hidden_size + 4 * config.intermediate_size
    row += 3 * (config.heads + config.kv_heads) * config.head_dim
    stored = 2.0 * tokens * (row + config.layers * config.hidden_size)
    if not checkpointing:
        stored = 2.0 * tokens * row * config.layers
    logits = 10.0 * _LOGIT_ROWS * config.vocab_size
    return int(weights + stored + logits)
