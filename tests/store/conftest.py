from __future__ import annotations

import pytest
from hagane.store.store import Store


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "data")
    yield opened
    opened.database.close()
