"""Where a store is."""

from __future__ import annotations

from pathlib import Path

from hagane.store.store import StoreAddress


def test_an_address_is_written_nowhere_with_its_passwords():
    address = StoreAddress(Path("data"), "postgresql://u:pa55@h/d", "s3://k:pa55@b")
    assert "pa55" not in repr(address)
    assert StoreAddress.in_process(Path("data"), address.environment) == address
