"""Objects in a directory and in an S3 server: whole or not there, with errors that help."""

from __future__ import annotations

import pytest
from hagane.store.blobs import Blobs, shown
from hagane.system.errors import (
    ConfigurationError,
    HaganeError,
    NotFoundError,
    StoreUnavailableError,
)

from tests.support import s3 as object_store


@pytest.fixture(params=["directory", "s3"])
def blobs(request, tmp_path):
    if request.param == "directory":
        return Blobs(str(tmp_path / "shared"))
    return Blobs(f"s3://{request.getfixturevalue('s3').bucket()}/some/prefix")


def test_an_object_is_read_as_it_was_written(blobs, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"\0content\n" * 1000)
    assert not blobs.has("files/one")
    blobs.put("files/one", source)
    blobs.put("files/one", source)
    assert blobs.has("files/one")
    blobs.get("files/one", target)
    assert target.read_bytes() == source.read_bytes()
    blobs.delete("files/one")
    blobs.delete("files/one")
    assert not blobs.has("files/one")
    with pytest.raises(NotFoundError, match="files/one"):
        blobs.get("files/one", target)


def test_nothing_half_written_lies_in_a_directory(tmp_path):
    (tmp_path / "source").write_bytes(b"content")
    Blobs(f"file://{tmp_path}/shared").put("a/b", tmp_path / "source")
    assert [p.name for p in (tmp_path / "shared" / "a").iterdir()] == ["b"]


def test_what_cannot_be_used_at_the_start_is_named_with_the_remedy(tmp_path, s3):
    (tmp_path / "file").write_text("no directory")
    for url in (str(tmp_path / "file"), "s3://no-such-bucket/prefix", "unknown://x"):
        with pytest.raises(ConfigurationError, match=r"^blob_url"):
            Blobs(url)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://key:pa55/word@bucket/prefix", "s3://bucket/prefix"),
        ("ftp://key@host/a?token=pa55word#pa55word", "ftp://host/a"),
        ("simplecache::s3://key:pa55word@bucket", "simplecache::s3://bucket"),
        ("/srv/what?#@", "/srv/what?#@"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url, place):
    assert shown(url) == place


def test_an_error_at_the_start_repeats_no_secret():
    with pytest.raises(ConfigurationError) as caught:
        Blobs("unknown://user:pa55word@host/?token=pa55word")
    assert "unknown://host/ cannot be used" in str(caught.value)
    assert "pa55word" not in str(caught.value)


def test_a_place_that_can_be_read_alone_is_refused_at_the_start(blobs):
    blobs.probe()
    with pytest.raises(ConfigurationError, match="/proc/self cannot be used"):
        Blobs("/proc/self").probe()


def test_what_waiting_does_not_mend_is_no_outage(tmp_path):
    (tmp_path / "source").write_bytes(b"content")
    with pytest.raises(HaganeError, match=r"refuses .*ValueError") as caught:
        Blobs(str(tmp_path / "shared")).put("with\0zero", tmp_path / "source")
    assert type(caught.value) is HaganeError


@pytest.mark.slow
def test_an_object_store_that_goes_away_is_reported_from_then_on(tmp_path, monkeypatch):
    if (reason := object_store.missing()) is not None:
        pytest.skip(reason)
    (tmp_path / "source").write_bytes(b"content")
    with object_store.running() as own:
        blobs = Blobs(f"s3://{own.bucket()}")
    with pytest.raises(StoreUnavailableError, match="try again"):
        blobs.put("a", tmp_path / "source")
    with pytest.raises(StoreUnavailableError):
        blobs.has("a")
    for name, value in own.variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="Could not connect"):
        Blobs("s3://bucket")
