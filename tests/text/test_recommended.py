"""The models that are recommended, against what Hagane loads."""

from __future__ import annotations

import pytest
from hagane.models.encoder_config import ARCHITECTURES
from hagane.models.families import FAMILIES
from hagane.text.hub import is_hub_id
from hagane.text.recommended import RECOMMENDED, best_format, fast_choices


@pytest.mark.parametrize("model", RECOMMENDED, ids=lambda model: model.name)
def test_each_is_of_a_family_that_loads(model):
    assert is_hub_id(model.name)
    assert model.architecture in {*FAMILIES, *ARCHITECTURES}


def test_the_most_exact_format_that_fits():
    model = next(model for model in RECOMMENDED if model.name == "Qwen/Qwen3-8B")
    assert best_format(model, 64 << 30) == "none"
    assert best_format(model, 12 << 30) == "int8"
    assert best_format(model, 8 << 30) == "int4"
    assert best_format(model, 4 << 30) is None


def test_choices_are_fast_enough_and_the_largest_first():
    choices = list(fast_choices(64 << 30, bandwidth=40e9, speed=10))
    assert choices
    assert all(speed >= 10 for _, _, speed in choices)
    sizes = {model.name: model.parameters for model in RECOMMENDED}
    parameters = [sizes[name] for name, _, _ in choices]
    assert parameters == sorted(parameters, reverse=True)
    assert not list(fast_choices(64 << 30, bandwidth=1e9, speed=10))
