"""What a server removes from time to time."""

from __future__ import annotations

import asyncio

from hagane.server.housekeeping import housekeeping
from hagane.store.jobs import Job
from hagane.store.store import Store, StoreAddress


async def test_expired_files_and_states_of_jobs_that_are_over_go(tmp_path):
    address = StoreAddress(tmp_path / "data", blob_url=f"file://{tmp_path / 'blobs'}")
    store = Store.open(address)
    with store.files.upload() as upload:
        upload.write(b"x")
        stored = upload.finish("a", "batch", kept_seconds=-120)
    store.jobs.add(Job("over", 1, "cancelled", "tiny", "file", {}, {}))
    store.blobs.put("job-states/over", store.files.path(stored.id))
    loop = housekeeping(store)
    loop.start()
    async with asyncio.timeout(60):
        while store.files.path(stored.id).exists() or store.blobs.has("job-states/over"):
            await asyncio.sleep(0.02)
    await loop.stop()
    assert not loop.failures
    assert not store.blobs.has(f"files/{stored.id}")
    store.close()
