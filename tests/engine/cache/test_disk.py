"""Blocks in files: found again, bounded, and dropped where they are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hagane.engine.cache.disk import DiskTier, _size
from hagane.system.errors import ConfigurationError

SIZE = 100


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def content(number: int) -> bytearray:
    return bytearray(number % 251 for _ in range(SIZE))


def save(tier: DiskTier, *numbers: int) -> None:
    for number in numbers:
        tier.files.write(digest(number), memoryview(content(number)))
        tier.files.delete(tier.add([digest(number)]))


def load(tier: DiskTier, number: int) -> bytearray | None:
    into = bytearray(SIZE)
    return into if tier.files.read(digest(number), memoryview(into)) else None


def blocks_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if len(path.name) == 64]


def opened(root: Path, blocks: int = 10, name: str = "model") -> DiskTier:
    return DiskTier(root, name, blocks * (SIZE + 16), SIZE)


def test_blocks_outlive_their_tier_in_the_order_of_use(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for number in (3, 1, 2):
        save(first, number)
        os.utime(first.files._path(digest(number)), ns=(number, number))
    assert load(first, 1) == content(1)
    first.close()
    again = opened(tmp_path)
    assert [digest(n) in again for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert load(again, 3) == content(3)
    # 1 was read last.
    assert list(again._known) == [digest(2), digest(3), digest(1)]


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    tier = opened(tmp_path, blocks=3)
    save(tier, 1, 2, 3)
    tier.count_loaded(digest(1))
    save(tier, 4)
    assert digest(2) not in tier and len(tier) == 3
    assert len(blocks_in(tmp_path)) == 3
    assert load(tier, 1) == content(1)


@pytest.mark.parametrize("at", [0, 15, 16, 60, SIZE + 15])
def test_a_damaged_block_is_dropped(tmp_path: Path, at: int) -> None:
    tier = opened(tmp_path)
    save(tier, 7)
    (path,) = blocks_in(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert load(tier, 7) is None
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 10, SIZE])
def test_a_cut_block_is_dropped(tmp_path: Path, size: int) -> None:
    tier = opened(tmp_path)
    save(tier, 7)
    (path,) = blocks_in(tmp_path)
    os.truncate(path, size)
    assert load(tier, 7) is None
    tier.close()
    save(opened(tmp_path), 8)
    os.truncate(blocks_in(tmp_path)[0], size)
    assert not list(opened(tmp_path, name="model").files.directory.rglob("*.part"))


def test_parts_of_files_are_deleted_at_the_start(tmp_path: Path) -> None:
    tier = opened(tmp_path)
    save(tier, 7)
    (path,) = blocks_in(tmp_path)
    path.with_suffix(".part").write_bytes(b"half")
    os.truncate(path, 50)
    tier.close()
    assert len(opened(tmp_path)) == 0
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"]


def test_others_may_not_read_them(tmp_path: Path) -> None:
    tier = opened(tmp_path / "kv")
    save(tier, 7)
    for path in (tmp_path / "kv").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.name == "lock"
    assert (tmp_path / "kv").stat().st_mode & 0o077 == 0


def test_servers_of_one_model_have_directories_of_their_own(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    assert first.files.directory != second.files.directory
    save(first, 1)
    assert digest(1) not in second
    # The first directory is free again, and the blocks in it with it.
    first.close()
    assert digest(1) in opened(tmp_path)


def test_models_that_no_engine_runs_with_make_room(tmp_path: Path) -> None:
    old, running = opened(tmp_path, name="old"), opened(tmp_path, name="running")
    save(old, *range(6))
    save(running, *range(6))
    old.close()
    opened(tmp_path, blocks=8, name="new")
    assert not old.files.directory.exists()
    assert len(blocks_in(running.files.directory)) == 6


def test_bad_directories_and_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="kv_cache_disk"):
        opened(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="kv_cache_disk_memory"):
        DiskTier(tmp_path, "model", 50, SIZE)


def test_a_file_that_vanishes_has_no_size(tmp_path: Path) -> None:
    # Another engine deletes and renames while this one starts.
    assert _size(tmp_path / "gone") == 0
