"""`hagane jobs` on a real server."""

from __future__ import annotations

from tests.support.fine_tuning import examples, supervised
from tests.support.server import ADMIN_KEY, Server, hagane


def jobs(server: Server, *arguments: str):
    return hagane("jobs", *arguments, "--url", server.url, HAGANE_ADMIN_KEY=ADMIN_KEY)


def test_a_job_is_listed_shown_and_watched_to_its_end(admin_server, admin):
    file = admin.files.create(file=("train.jsonl", examples()), purpose="fine-tune")
    job = admin.fine_tuning.jobs.create(
        model=admin.models.list().data[0].id, training_file=file.id, suffix="watched",
        method=supervised(n_epochs=1, batch_size=8),
    )  # fmt: skip
    listed = jobs(admin_server, "list").stdout
    assert job.id in listed
    watched = jobs(admin_server, "watch", job.id)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    first, *_, last = watched.stdout.splitlines()
    assert f"Created fine-tuning job: {job.id}" in first
    assert "succeeded" in last
    assert '"status": "succeeded"' in jobs(admin_server, "show", job.id).stdout
    again = jobs(admin_server, "cancel", job.id)
    assert again.returncode == 2
    assert "succeeded" in again.stderr


def test_mistakes_are_one_line(admin_server):
    for arguments, part in (
        (("show", "ftjob-none"), "ftjob-none"),
        (("watch",), "job's id"),
        (("list", "ftjob-none"), "list none"),
    ):
        result = jobs(admin_server, *arguments)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert part in line
