"""Pulls beside each other, from a hub on loopback."""

from __future__ import annotations

import asyncio

import pytest
from hagane.api.model_pulls import ModelPulls
from hagane.system.errors import ConflictError
from hagane.text.hub_files import find_on_hub
from hagane.text.pulling import Pull

from tests.support.hub import hub


async def test_neither_a_name_nor_files_are_pulled_twice_at_once(tmp_path):
    data = b"x" * 1000
    with hub({"me/x/a.gguf": data, "me/x/b.gguf": data}) as remote:
        files = {
            name: await asyncio.to_thread(find_on_hub, f"me/x/{name}.gguf", remote.url)
            for name in "ab"
        }
        pulls = ModelPulls()
        remote.held = True
        try:
            first = pulls.start(Pull(files["a"], tmp_path, "one"))
            for again in (Pull(files["a"], tmp_path, "two"), Pull(files["b"], tmp_path, "one")):
                with pytest.raises(ConflictError, match=first.id):
                    pulls.start(again)
            second = pulls.start(Pull(files["b"], tmp_path, "two"))
        finally:
            remote.held = False
        for started in (first, second):
            assert started.task is not None
            await started.task
        assert (first.status, second.status) == ("succeeded", "succeeded")
        assert (tmp_path / "one/a.gguf").read_bytes() == data
