"""How layers get mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta

from hagane.models.config import ExpertsSpec, ModelConfig
from hagane.models.families.keys import Found

# A count of experts, or of groups of them.
Experts = Annotated[int, Meta(ge=1, le=4096)]

# In all layers: three times those of the largest open models.
_MOST_EXPERTS = 1 << 16


def mixed(
    found: Found[Any],
    config: ModelConfig,
    experts: ExpertsSpec,
    has: Callable[[int], bool] = lambda _: True,
) -> ModelConfig:
    """`config` with `experts` in the layers that have them.

    Raises ModelError if so many cannot be chosen.
    """
    routing = experts.routing
    if experts.count * config.layers > _MOST_EXPERTS:
        raise found.error("num_hidden_layers", f"asks for more than {_MOST_EXPERTS} experts in all")
    within = experts.count // max(1, routing.groups) * routing.chosen_groups
    if experts.count % routing.groups or routing.chosen_groups > routing.groups:
        raise found.error("n_group", f"{routing.groups} does not divide {experts.count} experts")
    if routing.chosen > within:
        raise found.error(
            "num_experts_per_tok", f"is {routing.chosen}, of {within} experts to choose from"
        )
    specs = tuple(
        replace(spec, experts=experts) if has(layer) else spec
        for layer, spec in enumerate(config.layer_specs)
    )
    return replace(config, layer_specs=specs)
