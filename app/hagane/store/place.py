"""The name of a data directory among those of several servers."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from hagane.system.files import write_text

_FILE = "place"


def named_place(directory: Path) -> str:
    """The name of `directory`, which it gets once and keeps across restarts.

    Servers of one directory are in one place. Raises OSError.
    """
    file = directory / _FILE
    if not file.exists():
        made = directory / f"{_FILE}.{uuid.uuid4().hex}"
        write_text(made, uuid.uuid4().hex)
        try:
            # Of several that start together, the first has named it.
            os.link(made, file)
        except FileExistsError:
            pass
        except OSError:
            # A file system without links.
            made.replace(file)
        finally:
            made.unlink(missing_ok=True)
    return file.read_text(encoding="utf-8")
