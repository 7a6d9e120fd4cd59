"""Every test of the store runs on both databases."""

from __future__ import annotations

import pytest
from hagane.store.store import Store, StoreAddress


@pytest.fixture(params=["sqlite", "postgres"])
def address(request, tmp_path):
    """Of a store that is not there yet."""
    shared = request.param == "postgres"
    url = request.getfixturevalue("postgres").url() if shared else None
    return StoreAddress(tmp_path / "data", url)


@pytest.fixture
def store(address):
    opened = Store.open(address)
    yield opened
    opened.close()
