"""One export in a process of its own, on the time and memory that the server leaves free.

`python -m hagane.training.exports.worker` takes an ExportTask as JSON on its standard input, and
writes lines of JSON: `stage` and `progress` on the way, `error` and `code` if it fails.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from hagane.system.errors import HaganeError
from hagane.system.files import full, is_full
from hagane.training.exports.archive import pack
from hagane.training.exports.task import ExportTask
from hagane.training.jobs.priority import step_back

# The stage, and the share of it that is done; None where that is not known.
Report = Callable[[str, float | None], None]


def export(task: ExportTask, report: Report) -> None:
    """Write the file of `task`. Raises HaganeError."""
    name = task.target.stem

    def packing(share: float) -> None:
        report("packing", share)

    if task.format == "adapter":
        pack(_adapter(task), task.target, name, packing)
    elif task.format == "model" and task.adapter is None and task.base.is_dir():
        pack(task.base, task.target, name, packing)
    elif task.format == "model":
        with tempfile.TemporaryDirectory(dir=task.target.parent) as folder:
            merged = Path(folder) / name
            report("merging", None)
            _merge(task, merged)
            pack(merged, task.target, name, packing)
    else:
        _write_gguf(task, report)


def _adapter(task: ExportTask) -> Path:
    if task.adapter is None:
        raise HaganeError("There is no adapter to export.")
    return task.adapter


def _merge(task: ExportTask, directory: Path) -> None:
    # torch takes a second, which an archive of an adapter should not cost.
    from hagane.lora.merge import merge_directory

    merge_directory(task.base, _adapter(task), directory)


def _write_gguf(task: ExportTask, report: Report) -> None:
    from hagane.lora.export import export_gguf, export_gguf_adapter

    if task.format == "gguf_adapter":
        report("writing", None)
        export_gguf_adapter(task.base, _adapter(task), task.target)
        return
    export_gguf(
        task.base, task.adapter, task.target, task.type, lambda share: report("writing", share)
    )


def _take_output() -> TextIO:
    """The standard output, for our lines alone: what libraries print joins the errors."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


def main() -> None:
    step_back()
    output = _take_output()

    def say(**line: str | float | None) -> None:
        print(json.dumps(line), file=output, flush=True)

    task = ExportTask.model_validate_json(sys.stdin.read())
    try:
        export(task, lambda stage, progress: say(stage=stage, progress=progress))
    except Exception as error:
        if is_full(error):
            error = full(task.target.parent)
        code = error.code if isinstance(error, HaganeError) else "internal_error"
        message = str(error) if isinstance(error, HaganeError) else f"{type(error).__name__}"
        say(error=message, code=code)
        if code == "internal_error":
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()
