"""Schema migrations: step N takes a database from version N to N + 1. Old steps never change.

They are in SQLite's dialect; `hagane.store.postgres` translates the few types that differ.
"""

from __future__ import annotations

_FIRST = (
    """
    CREATE TABLE files (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        filename TEXT NOT NULL,
        purpose TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        created_at INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        created_at INTEGER NOT NULL,
        finished_at INTEGER,
        status TEXT NOT NULL,
        model TEXT NOT NULL,
        suffix TEXT,
        training_file TEXT NOT NULL,
        validation_file TEXT,
        request JSON NOT NULL,
        spec JSON NOT NULL,
        fine_tuned_model TEXT,
        trained_tokens INTEGER,
        error JSON,
        plan JSON,
        progress JSON,
        result JSON,
        heartbeat_at FLOAT,
        deaths INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX jobs_status ON jobs (status, sequence)",
    """
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL REFERENCES jobs (id),
        created_at INTEGER NOT NULL,
        level TEXT NOT NULL,
        type TEXT NOT NULL,
        message TEXT NOT NULL,
        data JSON NOT NULL
    )
    """,
    "CREATE INDEX events_job ON events (job, sequence)",
    """
    CREATE TABLE checkpoints (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL REFERENCES jobs (id),
        created_at INTEGER NOT NULL,
        name TEXT NOT NULL UNIQUE,
        step INTEGER NOT NULL,
        directory TEXT NOT NULL,
        digest TEXT NOT NULL,
        metrics JSON NOT NULL
    )
    """,
    "CREATE INDEX checkpoints_job ON checkpoints (job, sequence)",
    """
    CREATE TABLE adapters (
        name TEXT NOT NULL PRIMARY KEY,
        root TEXT NOT NULL,
        directory TEXT NOT NULL,
        digest TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        promoted BOOLEAN NOT NULL,
        job TEXT REFERENCES jobs (id)
    )
    """,
    """
    CREATE TABLE alias_generations (
        name TEXT NOT NULL,
        generation INTEGER NOT NULL,
        target TEXT,
        candidate TEXT,
        percentage FLOAT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (name, generation)
    )
    """,
)

_SECOND = ("ALTER TABLE checkpoints ADD COLUMN asked_for BOOLEAN NOT NULL DEFAULT 0",)

_THIRD = (
    """
    CREATE TABLE responses (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at FLOAT NOT NULL,
        status TEXT NOT NULL,
        previous TEXT,
        conversation TEXT,
        bytes INTEGER NOT NULL,
        body TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE conversations (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at FLOAT NOT NULL,
        metadata JSON NOT NULL
    )
    """,
    """
    CREATE TABLE items (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        response TEXT,
        conversation TEXT,
        output BOOLEAN NOT NULL,
        bytes INTEGER NOT NULL,
        body TEXT NOT NULL
    )
    """,
    "CREATE INDEX items_id ON items (id)",
    "CREATE INDEX items_response ON items (response, sequence)",
    "CREATE INDEX items_conversation ON items (conversation, sequence)",
    "CREATE INDEX responses_expiry ON responses (expires_at)",
    "CREATE INDEX conversations_expiry ON conversations (expires_at)",
)

_FOURTH = (
    """
    CREATE TABLE batches (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        status TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        input_file TEXT NOT NULL,
        completion_window TEXT NOT NULL,
        metadata JSON NOT NULL,
        moments JSON NOT NULL,
        counts JSON NOT NULL,
        errors JSON NOT NULL,
        output_file TEXT,
        error_file TEXT
    )
    """,
    "CREATE INDEX batches_status ON batches (status, sequence)",
)

_FIFTH = (
    """
    CREATE TABLE api_keys (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        digest TEXT NOT NULL UNIQUE,
        hint TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        limits JSON NOT NULL,
        urgent BOOLEAN NOT NULL,
        expires_at INTEGER,
        revoked_at INTEGER
    )
    """,
    """
    CREATE TABLE key_usage (
        label TEXT NOT NULL,
        day TEXT NOT NULL,
        requests INTEGER NOT NULL,
        refused INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        generated_tokens INTEGER NOT NULL,
        PRIMARY KEY (day, label)
    )
    """,
)

# Which of several servers works on an entry.
_SIXTH = tuple(
    f"ALTER TABLE {name} ADD COLUMN server TEXT" for name in ("jobs", "batches", "responses")
)

# The label of the key that something belongs to; what was there before is the administrators'.
_SEVENTH = (
    "ALTER TABLE files ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE batches ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX files_owner ON files (owner)",
    "CREATE INDEX batches_owner ON batches (owner, status)",
)

# Unix seconds, of files that were uploaded to be kept for a while.
_EIGHTH = (
    "ALTER TABLE files ADD COLUMN expires_at INTEGER",
    "CREATE INDEX files_expiry ON files (expires_at)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    _FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH, _SEVENTH, _EIGHTH,
)  # fmt: skip
