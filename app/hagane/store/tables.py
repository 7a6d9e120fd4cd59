"""The tables for queries. `migrations` creates them; a test compares both.

`sequence` is the order of insertion, which lists are sorted and paged by.
"""

from __future__ import annotations

import sqlalchemy as sa

# Of 64 bits in either database.
INTEGER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
metadata = sa.MetaData()


def _sequence() -> sa.Column[int]:
    return sa.Column("sequence", INTEGER, primary_key=True, autoincrement=True)


files = sa.Table(
    "files",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("bytes", INTEGER, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expires_at", INTEGER),
)
jobs = sa.Table(
    "jobs",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("finished_at", INTEGER),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("suffix", sa.Text),
    sa.Column("training_file", sa.Text, nullable=False),
    sa.Column("validation_file", sa.Text),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("fine_tuned_model", sa.Text),
    sa.Column("trained_tokens", INTEGER),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("plan", sa.JSON(none_as_null=True)),
    sa.Column("progress", sa.JSON(none_as_null=True)),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("heartbeat_at", sa.Float),
    sa.Column("deaths", INTEGER, nullable=False),
    sa.Column("server", sa.Text),
)
events = sa.Table(
    "events",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("step", INTEGER, nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("asked_for", sa.Boolean, nullable=False),
)
adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("root", sa.Text, nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("promoted", sa.Boolean, nullable=False),
    sa.Column("job", sa.Text),
)
alias_generations = sa.Table(
    "alias_generations",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("generation", INTEGER, primary_key=True),
    sa.Column("target", sa.Text),
    sa.Column("candidate", sa.Text),
    sa.Column("percentage", sa.Float, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
)
responses = sa.Table(
    "responses",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("previous", sa.Text),
    sa.Column("conversation", sa.Text),
    sa.Column("bytes", INTEGER, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("server", sa.Text),
)
conversations = sa.Table(
    "conversations",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
)
items = sa.Table(
    "items",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("response", sa.Text),
    sa.Column("conversation", sa.Text),
    sa.Column("output", sa.Boolean, nullable=False),
    sa.Column("bytes", INTEGER, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
batches = sa.Table(
    "batches",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("expires_at", INTEGER, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("input_file", sa.Text, nullable=False),
    sa.Column("completion_window", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("moments", sa.JSON, nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("errors", sa.JSON, nullable=False),
    sa.Column("output_file", sa.Text),
    sa.Column("error_file", sa.Text),
    sa.Column("server", sa.Text),
    sa.Column("owner", sa.Text, nullable=False),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("hint", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("urgent", sa.Boolean, nullable=False),
    sa.Column("expires_at", INTEGER),
    sa.Column("revoked_at", INTEGER),
)
key_usage = sa.Table(
    "key_usage",
    metadata,
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("day", sa.Text, primary_key=True),
    sa.Column("requests", INTEGER, nullable=False),
    sa.Column("refused", INTEGER, nullable=False),
    sa.Column("prompt_tokens", INTEGER, nullable=False),
    sa.Column("generated_tokens", INTEGER, nullable=False),
)
