"""Which name is answered by which weights."""

from __future__ import annotations

import pytest
from hagane.store.aliases import AliasGeneration
from hagane.store.artifacts import ServedArtifact
from hagane.store.catalogue import Catalogue
from hagane.store.jobs import Job, JobCheckpoint, new_job_id
from hagane.store.offered import OfferedModels
from hagane.system.errors import ConflictError, ModelNotFoundError


@pytest.fixture
def catalogue(store):
    return Catalogue(store.database, "base")


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "adapter"
    made.mkdir()
    return made


def test_a_registered_adapter_is_served_until_deleted(catalogue, store, directory):
    served = catalogue.register("mine", directory, "d1")
    assert catalogue.resolve("mine") == served
    assert (served.root, served.adapter_directory, served.digest) == ("base", directory, "d1")
    assert catalogue.list() == [served]
    store.artifacts.delete("mine")
    assert catalogue.resolve("mine") is None
    with pytest.raises(ModelNotFoundError):
        store.artifacts.delete("mine")


def test_an_adapter_of_another_model_is_served_while_that_is_there(store, directory, tmp_path):
    offered = {"other": tmp_path / "other"}
    catalogue = Catalogue(store.database, "base", OfferedModels(offered))
    served = catalogue.register("mine", directory, "d1", base="other")
    assert catalogue.resolve("mine") == served
    assert (served.root, served.model_directory) == ("other", offered["other"])
    assert served.adapter_directory == directory and not served.standalone
    assert [(model.id, model.standalone) for model in catalogue.list()] == [
        ("mine", False), ("other", True),
    ]  # fmt: skip
    # As another server of the store, which has not that model; or is started on it.
    assert Catalogue(store.database, "base").resolve("mine") is None
    assert Catalogue(store.database, "other").resolve("mine").model_directory is None


def test_a_taken_name_is_refused_unless_an_adapter_is_replaced(catalogue, store, directory):
    catalogue.register("mine", directory, "d1")
    store.aliases.set(AliasGeneration("alias", "mine"))
    for name in ("base", "alias", "mine"):
        with pytest.raises(ConflictError):
            catalogue.register(name, directory, "d2")
    assert catalogue.register("mine", directory, "d2", replace=True).digest == "d2"
    assert catalogue.resolve("mine").digest == "d2"


def test_aliases_lead_to_adapters_and_to_the_base_model(catalogue, store, directory):
    catalogue.register("mine", directory, "d1")
    store.aliases.set(AliasGeneration("support", "mine"))
    assert catalogue.resolve("support").id == "mine"
    store.aliases.set(AliasGeneration("support", "base"))
    served = catalogue.resolve("support")
    assert (served.id, served.adapter_directory) == ("base", None)
    store.aliases.set(AliasGeneration("support", "mine", candidate="base", percentage=100))
    assert catalogue.resolve("support").id == "base"
    assert [served.id for served in catalogue.list()] == ["mine", "support"]


def test_an_adapter_in_use_by_an_alias_stays(catalogue, store, directory):
    catalogue.register("mine", directory, "d1")
    store.aliases.set(AliasGeneration("support", "base", candidate="mine", percentage=1))
    with pytest.raises(ConflictError, match="support"):
        store.artifacts.delete("mine")
    store.aliases.set(AliasGeneration("support", "base"))
    store.artifacts.delete("mine")


def test_what_must_not_be_served_is_not(catalogue, store, directory):
    store.artifacts.put(ServedArtifact("kept", "base", str(directory), "d", promoted=False))
    store.artifacts.put(ServedArtifact("other", "another-base", str(directory), "d"))
    store.artifacts.put(ServedArtifact("gone", "base", str(directory / "gone"), "d"))
    assert [catalogue.resolve(n) for n in ("kept", "other", "gone", "base")] == [None] * 4
    assert catalogue.list() == []
    store.artifacts.promote("kept")
    assert catalogue.resolve("kept").id == "kept"


def test_checkpoints_are_served_by_name(catalogue, store, directory):
    job = Job(new_job_id(), 1, "running", "base", "file", {}, {})
    store.jobs.add(job)
    name = job.checkpoint_name(7)
    store.jobs.add_checkpoint(job.id, JobCheckpoint(name, 7, str(directory), "d7", {}))
    served = catalogue.resolve(name)
    assert (served.id, served.digest, served.adapter_directory) == (name, "d7", directory)
    assert catalogue.list() == []
    assert Catalogue(store.database, "another").resolve(name) is None


def test_a_checkpoint_that_was_asked_for_is_not_pruned(catalogue, store, directory):
    job = Job(new_job_id(), 1, "running", "base", "file", {}, {})
    store.jobs.add(job)
    for step in (1, 2, 3):
        point = JobCheckpoint(
            job.checkpoint_name(step), step, str(directory), "d", {"valid_loss": step}
        )
        store.jobs.add_checkpoint(job.id, point)
    assert catalogue.resolve(job.checkpoint_name(2)) is not None
    assert [point.step for point in store.jobs.prune_checkpoints(job.id, 1)] == [3]
    assert catalogue.resolve(job.checkpoint_name(2)) is not None
    assert catalogue.resolve(job.checkpoint_name(3)) is None


def test_a_job_s_model_goes_with_its_checkpoints_unless_an_alias_needs_one(store, directory):
    job = Job(new_job_id(), 1, "succeeded", "base", "file", {}, {})
    store.jobs.add(job)
    store.artifacts.put(ServedArtifact(job.model_name, "base", str(directory), "d", True, job.id))
    name = job.checkpoint_name(7)
    store.jobs.add_checkpoint(job.id, JobCheckpoint(name, 7, str(directory), "d7", {}))
    store.aliases.set(AliasGeneration("best", "base", candidate=name, percentage=5))
    with pytest.raises(ConflictError, match="best"):
        store.artifacts.delete(job.model_name)
    store.aliases.delete("best")
    store.artifacts.delete(job.model_name)
    assert Catalogue(store.database, "base").resolve(name) is None


def test_promotion_names_the_model_as_the_job_s_result(store, directory):
    job = Job(new_job_id(), 1, "succeeded", "base", "file", {}, {})
    store.jobs.add(job)
    adapter = ServedArtifact(job.model_name, "base", str(directory), "d", False, job.id)
    store.artifacts.put(adapter)
    store.artifacts.promote(job.model_name)
    assert store.jobs.get(job.id).fine_tuned_model == job.model_name
    assert store.artifacts.find(job.model_name).promoted
