"""Schema migrations of the answers' database: step N takes it from version N to N + 1.

Old steps never change.
"""

from __future__ import annotations

_FIRST = (
    """
    CREATE TABLE completions (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        created_at INTEGER NOT NULL,
        "key" TEXT NOT NULL,
        "user" TEXT,
        model TEXT NOT NULL,
        alias TEXT,
        arm TEXT,
        conversation TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        metadata JSON NOT NULL,
        request TEXT NOT NULL,
        response TEXT NOT NULL
    )
    """,
    'CREATE INDEX completions_key ON completions ("key", sequence)',
    'CREATE INDEX completions_user ON completions ("user")',
    "CREATE INDEX completions_created_at ON completions (created_at)",
    """
    CREATE TABLE feedback (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        completion TEXT NOT NULL,
        choice INTEGER NOT NULL,
        author TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        "key" TEXT NOT NULL,
        "user" TEXT,
        model TEXT NOT NULL,
        alias TEXT,
        arm TEXT,
        thumbs TEXT,
        score FLOAT,
        correction TEXT,
        preferred_over TEXT,
        preferred_over_choice INTEGER NOT NULL DEFAULT 0,
        comment TEXT,
        tags JSON NOT NULL,
        UNIQUE (completion, choice, author)
    )
    """,
    'CREATE INDEX feedback_key ON feedback ("key", sequence)',
    'CREATE INDEX feedback_user ON feedback ("user")',
    "CREATE INDEX feedback_alias ON feedback (alias, updated_at)",
)

_SECOND = (
    """
    CREATE TABLE datasets (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        method TEXT NOT NULL,
        spec JSON NOT NULL,
        digest TEXT NOT NULL,
        card JSON NOT NULL,
        training_file TEXT NOT NULL,
        validation_file TEXT,
        parent TEXT,
        UNIQUE (name, version)
    )
    """,
)

_THIRD = (
    "ALTER TABLE feedback ADD COLUMN preferred_over_arm TEXT",
    """
    CREATE TABLE canaries (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        alias TEXT NOT NULL,
        generation INTEGER NOT NULL,
        target TEXT NOT NULL,
        candidate TEXT NOT NULL,
        policy JSON NOT NULL,
        state TEXT NOT NULL,
        counts JSON NOT NULL,
        reason TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        decided_at INTEGER
    )
    """,
    "CREATE INDEX canaries_alias ON canaries (alias, sequence)",
    "CREATE INDEX canaries_state ON canaries (state)",
    """
    CREATE TABLE canary_events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        canary TEXT NOT NULL REFERENCES canaries (id),
        created_at INTEGER NOT NULL,
        level TEXT NOT NULL,
        message TEXT NOT NULL,
        data JSON NOT NULL
    )
    """,
    "CREATE INDEX canary_events_canary ON canary_events (canary, sequence)",
)

_FOURTH = (
    """
    CREATE TABLE evals (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        data_source_config JSON NOT NULL,
        testing_criteria JSON NOT NULL,
        metadata JSON NOT NULL
    )
    """,
    """
    CREATE TABLE eval_runs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        eval TEXT NOT NULL REFERENCES evals (id),
        name TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        status TEXT NOT NULL,
        model TEXT NOT NULL,
        total INTEGER NOT NULL,
        data_source JSON NOT NULL,
        error JSON,
        metadata JSON NOT NULL
    )
    """,
    "CREATE INDEX eval_runs_eval ON eval_runs (eval, sequence)",
    "CREATE INDEX eval_runs_status ON eval_runs (status, sequence)",
    """
    CREATE TABLE eval_items (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        run TEXT NOT NULL REFERENCES eval_runs (id),
        number INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        status TEXT NOT NULL,
        item JSON NOT NULL,
        sample JSON NOT NULL,
        results JSON NOT NULL,
        UNIQUE (run, number)
    )
    """,
)

# Which of several servers works on a run.
_FIFTH = ("ALTER TABLE eval_runs ADD COLUMN server TEXT",)

# Conversations of the chat page.
_SIXTH = (
    """
    CREATE TABLE chats (
        owner TEXT NOT NULL,
        id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        updated_at FLOAT NOT NULL,
        bytes INTEGER NOT NULL,
        deleted BOOLEAN NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (owner, id)
    )
    """,
    "CREATE INDEX chats_updated ON chats (updated_at)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH)
