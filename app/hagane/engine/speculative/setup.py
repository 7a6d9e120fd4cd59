"""Makes the proposer that an engine's settings describe, a draft model included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from hagane.engine.parallel.meeting import own_config
from hagane.engine.sampling.constraints import Constraints
from hagane.engine.speculative.costs import StepCosts
from hagane.engine.speculative.draft_model import DraftModel
from hagane.engine.speculative.drafting import Drafting
from hagane.engine.speculative.history import AnswerHistory
from hagane.engine.speculative.speculator import Speculator
from hagane.engine.step.runner import ModelRunner
from hagane.pool.footprint import weight_bytes
from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError
from hagane.system.machine import available_memory
from hagane.text.shared_vocabulary import require_same_vocabulary
from hagane.weights.sources.config import load_config

# Sequences that a draft follows at a time, and its cache's part of the model's: with more streams
# than that the rows cost more than they yield.
_MOST_FOLLOWED = 8
_CACHE_SHARE = 4


def make_proposer(
    config: EngineConfig,
    runner: ModelRunner,
    constraints: Constraints,
    progress: Callable[[str], None],
    *,
    overlap: bool,
    costs: StepCosts | None = None,
    draft_costs: StepCosts | None = None,
) -> Speculator | None:
    """The source of guessed tokens; None where a step cannot verify them.

    Raises ConfigurationError if they are required there, and for a draft that does not fit the
    model or the memory; ModelError for one that cannot be loaded.
    """
    if config.speculation == "draft" and config.draft_model is None:
        raise ConfigurationError("speculation draft needs a model that drafts: set draft_model")
    if config.speculation == "off":
        return None
    if not runner.verifies or overlap:
        wanted = "draft_model" if config.draft_model else f"speculation {config.speculation}"
        if config.draft_model or config.speculation != "auto":
            raise ConfigurationError(f"{wanted} needs the native CPU kernels: leave it out")
        return None
    drafting = None
    if config.draft_model is not None:
        draft = _load(config, config.draft_model, runner, progress)
        model = DraftModel(
            draft,
            constraints,
            vocab_size=runner.vocab_size,
            prefix_caching=config.prefix_caching,
        )
        drafting = Drafting(model, draft_costs)
    rows = min(runner.decode_rows, config.max_batch_tokens)
    history = AnswerHistory() if config.prefix_caching else None
    return Speculator(rows, constraints.valid, config.speculation, drafting, history, costs)


def _load(
    config: EngineConfig, path: str, runner: ModelRunner, progress: Callable[[str], None]
) -> ModelRunner:
    require_same_vocabulary(Path(config.model), Path(path))
    model = load_config(Path(path))
    cache = sum(tensor.nbytes for pair in runner.caches for tensor in pair)
    own = msgspec.structs.replace(
        config,
        model=path,
        # One that is stored quantized stays as it is.
        quantize=config.quantize if model.quantization is None else "none",
        context_length=min(runner.context_length, model.max_position_embeddings),
        max_sequences=min(config.max_sequences, _MOST_FOLLOWED),
        kv_cache_memory=None,
        kv_cache_limit=cache // _CACHE_SHARE,
        adapter_memory=0,
        draft_model=None,
        # Those that the model's own rank has.
        threads=own_config(config).threads,
    )
    # The system counts the model's own cache as free until it is written.
    needed, left = weight_bytes(own), available_memory() - cache
    if needed > left:
        raise ConfigurationError(
            f"draft_model {path} needs about {needed / 1e9:.2f} GB, and the model with its KV "
            f"cache leaves {max(left, 0) / 1e9:.2f} GB of memory: set a lower kv_cache_memory, or "
            "take a smaller draft"
        )
    return ModelRunner(own, lambda stage: progress(f"{stage} of the draft"))
