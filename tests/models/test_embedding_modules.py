"""Steps of sentence-transformers that are read, and those that would be computed wrongly."""

from __future__ import annotations

import json

import pytest
from hagane.models.embedding_modules import embedding_modules
from hagane.system.errors import ModelError


def write(directory, *kinds: str, first: str = "") -> None:
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else first, "type": kind}
        if "." in kind
        else {
            "idx": n, "name": str(n), "path": f"{n}_{kind}" if n else first,
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]  # fmt: skip
    (directory / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    "kinds",
    [
        ("Transformer", "Pooling"),
        ("Transformer", "Pooling", "Normalize"),
        ("Transformer", "Pooling", "Dense", "Dense", "Normalize"),
    ],
)
def test_steps_in_their_order(tmp_path, kinds):
    assert embedding_modules(tmp_path) == ()
    write(tmp_path, *kinds)
    steps = embedding_modules(tmp_path)
    assert tuple(step.kind for step in steps) == kinds
    assert steps[1].folder(tmp_path) == tmp_path / "1_Pooling"


@pytest.mark.parametrize(
    "kinds",
    [
        (),
        ("Transformer",),
        ("Pooling", "Transformer"),
        ("Transformer", "Dense", "Pooling"),
        ("Transformer", "Pooling", "Normalize", "Dense"),
        ("Transformer", "Pooling", "Pooling"),
        ("Transformer", "Normalize", "Pooling"),
    ],
)
def test_other_orders_are_refused(tmp_path, kinds):
    write(tmp_path, *kinds)
    with pytest.raises(ModelError, match="in this order"):
        embedding_modules(tmp_path)


@pytest.mark.parametrize(
    "kind", ["LayerNorm", "WordEmbeddings", "custom_st.Pooling", "sentence_transformers.models."]
)
def test_other_steps_are_refused_by_name(tmp_path, kind):
    write(tmp_path, "Transformer", "Pooling", kind)
    with pytest.raises(ModelError, match=f"the step '.*{kind}' is not supported"):
        embedding_modules(tmp_path)


def test_a_model_in_a_folder_of_its_own_is_not_read_from_another(tmp_path):
    write(tmp_path, "Transformer", "Pooling", first="0_Transformer")
    with pytest.raises(ModelError, match="lies in '0_Transformer'"):
        embedding_modules(tmp_path)


@pytest.mark.parametrize("path", ["..", "", "../1_Pooling", "/etc", "a/b"])
def test_folders_elsewhere_are_refused(tmp_path, path):
    write(tmp_path, "Transformer", "Pooling")
    steps = json.loads((tmp_path / "modules.json").read_text())
    steps[1]["path"] = path
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(ModelError, match="no folder of the model's own"):
        embedding_modules(tmp_path)
