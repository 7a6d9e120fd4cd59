"""A cluster's configuration: what is wrong with one is said in one line."""

from __future__ import annotations

import importlib.util
import json

import pytest
from hagane.cli.main import dispatch
from hagane.cluster.config import ClusterConfig
from hagane.system.errors import ConfigurationError


def test_a_file_is_read(tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text(
        'edges = 2\n[settings]\ndatabase_url = "postgresql://h/d"\n'
        "[engines]\nreplicas = 2\nmost = 8\ngpus = 0.5\n"
        '[[models]]\nname = "small"\nmodel = "/models/small"\n'
    )
    cluster = ClusterConfig.read(path)
    assert (cluster.edges, cluster.engines.most, cluster.engines.gpus) == (2, 8, 0.5)
    assert [(other.name, other.replicas) for other in cluster.models] == [("small", 1)]
    assert cluster.local_cpus >= 11


def test_the_database_of_several_edges_may_be_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("HAGANE_DATABASE_URL", "postgresql://u:p@h/d")
    assert ClusterConfig.of({"edges": 2}, "args").settings == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("edges = 2", "share a database"),
        ("[engines]\nreplicas = 3\nmost = 2", "most 2 is less than replicas 3"),
        ("[engines]\nreplica = 3", "engines.replica"),
        ("[settings]\nadmin_port = 8001", "admin_port"),
        ('routing = "best"', "routing"),
        ("edges = ", "is not TOML"),
        ("[training]\ntasks = 2", "blob_url"),
    ],
)
def test_mistakes_are_named(tmp_path, text, reason):
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        ClusterConfig.read(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ClusterConfig.read(tmp_path / "none.toml")


def test_a_config_for_serve_deploy_holds_no_secrets(tmp_path, capsys, monkeypatch):
    path = tmp_path / "cluster.toml"
    path.write_text("[settings]\nmax_sequences = 8\n[engines]\nreplicas = 2\n")
    monkeypatch.setenv("HAGANE_ADMIN_KEY", "sk-secret")
    assert dispatch(["cluster", "config", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "sk-secret" not in shown
    (application,) = json.loads(shown)["applications"]
    assert application["import_path"] == "hagane.cluster.application:build"
    assert application["args"] == {"settings": {"max_sequences": 8}, "engines": {"replicas": 2}}


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="needs psycopg")
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:secret@127.0.0.1:1/d", "127.0.0.1:1/d cannot be used"),
        ("mysql://u:secret@h/d", "is not of the form"),
    ],
)
def test_a_database_that_cannot_be_used_ends_the_start(tmp_path, url, reason):
    path = tmp_path / "cluster.toml"
    path.write_text(f'[settings]\ndata_dir = "{tmp_path}"\ndatabase_url = "{url}"\n')
    with pytest.raises(ConfigurationError, match=reason) as caught:
        dispatch(["cluster", "serve", str(path)])
    assert "secret" not in str(caught.value)
