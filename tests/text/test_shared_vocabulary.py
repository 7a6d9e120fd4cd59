"""Models that share a vocabulary, and those that do not."""

from __future__ import annotations

import json
import shutil

import pytest
from hagane.system.errors import ConfigurationError
from hagane.text.shared_vocabulary import require_same_vocabulary


@pytest.fixture
def other(tiny_model_dir, tmp_path):
    """Makes a copy of the tiny model's tokenizer whose vocabulary is changed."""

    def make(change):
        shutil.copy(tiny_model_dir / "tokenizer_config.json", tmp_path)
        state = json.loads((tiny_model_dir / "tokenizer.json").read_text(encoding="utf-8"))
        change(state)
        (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        return tmp_path

    return make


def test_files_that_say_the_same_in_other_words(tiny_model_dir, other):
    require_same_vocabulary(tiny_model_dir, tiny_model_dir)
    require_same_vocabulary(tiny_model_dir, other(lambda state: state.update(padding=None)))


def test_another_size_is_named(tiny_model_dir, other):
    def add(state):
        added = {**state["added_tokens"][0], "id": 10_000, "content": "<more>"}
        state["added_tokens"].append(added)

    with pytest.raises(ConfigurationError, match=r"it has \d+ tokens, tiny has \d+"):
        require_same_vocabulary(tiny_model_dir, other(add))


def test_other_ids_are_named(tiny_model_dir, other):
    def swap(state):
        ids = state["model"]["vocab"]
        ids["a"], ids["b"] = ids["b"], ids["a"]

    with pytest.raises(ConfigurationError, match=r"both have \d+ tokens, but '[ab]' is"):
        require_same_vocabulary(tiny_model_dir, other(swap))
