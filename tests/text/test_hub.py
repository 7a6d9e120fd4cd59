"""From a model's name to its directory."""

from __future__ import annotations

import pytest
from hagane.system.errors import ModelError
from hagane.system.settings import Settings
from hagane.text.hub import BUILTIN_MODELS, local_model, model_stores


def test_a_store_adds_to_the_built_in_models(tmp_path):
    (tmp_path / "mine").mkdir()
    stores = model_stores(Settings(models_dir=tmp_path, data_dir=tmp_path / "data"))
    assert local_model("mine", stores) == tmp_path / "mine"
    assert local_model("hagane-mini", stores) == BUILTIN_MODELS / "hagane-mini"


def test_a_model_of_the_store_comes_before_a_built_in_one_of_its_name(tmp_path):
    (tmp_path / "hagane-mini").mkdir()
    stores = model_stores(Settings(models_dir=tmp_path, data_dir=tmp_path / "data"))
    assert local_model("hagane-mini", stores) == tmp_path / "hagane-mini"


def test_a_name_found_nowhere_lists_the_models_that_are_there(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ModelError, match=r"there: mine\)"):
        local_model("nothing", [tmp_path])
