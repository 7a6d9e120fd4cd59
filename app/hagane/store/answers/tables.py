"""The tables of the answers' database for queries. `migrations` creates them."""

from __future__ import annotations

import sqlalchemy as sa

from hagane.store.tables import INTEGER

metadata = sa.MetaData()


def _sequence() -> sa.Column[int]:
    return sa.Column("sequence", INTEGER, primary_key=True, autoincrement=True)


completions = sa.Table(
    "completions",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("user", sa.Text),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("alias", sa.Text),
    sa.Column("arm", sa.Text),
    sa.Column("conversation", sa.Text, nullable=False),
    sa.Column("bytes", INTEGER, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
)
feedback = sa.Table(
    "feedback",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("completion", sa.Text, nullable=False),
    sa.Column("choice", INTEGER, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("updated_at", INTEGER, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("user", sa.Text),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("alias", sa.Text),
    sa.Column("arm", sa.Text),
    sa.Column("thumbs", sa.Text),
    sa.Column("score", sa.Float),
    sa.Column("correction", sa.Text),
    sa.Column("preferred_over", sa.Text),
    sa.Column("preferred_over_choice", INTEGER, nullable=False),
    sa.Column("comment", sa.Text),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("preferred_over_arm", sa.Text),
)
datasets = sa.Table(
    "datasets",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", INTEGER, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("card", sa.JSON, nullable=False),
    sa.Column("training_file", sa.Text, nullable=False),
    sa.Column("validation_file", sa.Text),
    sa.Column("parent", sa.Text),
)
canaries = sa.Table(
    "canaries",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("alias", sa.Text, nullable=False),
    sa.Column("generation", INTEGER, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("decided_at", INTEGER),
)
canary_events = sa.Table(
    "canary_events",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("canary", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)
evals = sa.Table(
    "evals",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("data_source_config", sa.JSON, nullable=False),
    sa.Column("testing_criteria", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
)
eval_runs = sa.Table(
    "eval_runs",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("eval", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("total", INTEGER, nullable=False),
    sa.Column("data_source", sa.JSON, nullable=False),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("server", sa.Text),
)
eval_items = sa.Table(
    "eval_items",
    metadata,
    _sequence(),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("number", INTEGER, nullable=False),
    sa.Column("created_at", INTEGER, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("item", sa.JSON, nullable=False),
    sa.Column("sample", sa.JSON, nullable=False),
    sa.Column("results", sa.JSON, nullable=False),
)
chats = sa.Table(
    "chats",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("revision", INTEGER, nullable=False),
    sa.Column("updated_at", sa.Float(53), nullable=False),
    sa.Column("bytes", INTEGER, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
