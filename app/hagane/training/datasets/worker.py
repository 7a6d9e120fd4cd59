"""The process that builds a data set: reads a `Task`, writes the files, prints what it built."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hagane.data.records import RecordError, parse
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import HaganeError, InvalidRequestError
from hagane.training.datasets.build import Built, Edit, Task
from hagane.training.datasets.clean import Card, clean, split
from hagane.training.datasets.select import select
from hagane.training.datasets.spec import DatasetSpec
from hagane.training.jobs.priority import step_back


def main() -> None:
    step_back()
    task = Task.model_validate_json(sys.stdin.read())
    store = Store.open(StoreAddress.in_process(Path(sys.argv[1]), os.environ))
    try:
        answer = asdict(_edit(store, task, task.edit) if task.edit else _build(store, task))
    except HaganeError as error:
        answer = {"error": str(error), "param": getattr(error, "param", None)}
    print(json.dumps(answer))


def _build(store: Store, task: Task) -> Built:
    card = Card()
    examples = clean(select(store.answers, task.spec, card.skipped), task.spec, card)
    parts = split(examples, task.spec, card)
    if task.preview is not None:
        shown = [example.as_record() for example in examples[: task.preview]]
        return Built(card.as_json(), shown, [None, None], [])
    if not parts[0]:
        raise InvalidRequestError(
            f"No answer fits the filter; those left out: {dict(card.skipped) or 'none is stored'}.",
            param="filter",
        )
    records = [[example.as_record() for example in part] for part in parts]
    return _write(store, task.name, card.as_json(), records)


def _edit(store: Store, task: Task, edit: Edit) -> Built:
    parts = [_read(store, file_id) for file_id in edit.files]
    known = {record["source"] for records in parts for record in records}
    if unknown := sorted({*edit.remove, *edit.answers} - known):
        raise InvalidRequestError(
            f"The data set has no record '{unknown[0]}'; name it by its 'source'.", param="remove"
        )
    gone = set(edit.remove)
    edited = [
        [
            _changed(r, edit.answers.get(r["source"]), task.spec)
            for r in part
            if r["source"] not in gone
        ]
        for part in parts
    ]
    if not edited[0]:
        raise InvalidRequestError("No record is left to train on.", param="remove")
    counts = {"training": len(edited[0]), "validation": len(edited[1])}
    return _write(store, task.name, {**counts, "records": sum(counts.values())}, edited)


def _changed(record: dict[str, Any], answer: str | None, spec: DatasetSpec) -> dict[str, Any]:
    if answer is None:
        return record
    said = {"role": "assistant", "content": answer}
    if spec.method == "dpo":
        changed = {**record, "preferred_output": [said]}
    else:
        changed = {**record, "messages": [*record["messages"][:-1], said]}
    try:
        parse(json.dumps(changed), spec.method)
    except RecordError as error:
        raise InvalidRequestError(
            f"The new answer of '{record['source']}' cannot be trained on: {error}.",
            param="answers",
        ) from None
    return changed


def _read(store: Store, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    store.files.get(file_id)
    with store.files.local(file_id).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(
    store: Store, name: str, card: dict[str, Any], parts: Iterable[list[dict[str, Any]]]
) -> Built:
    files: list[str | None] = []
    hashes = []
    for kind, records in zip(("training", "validation"), parts, strict=True):
        if not records:
            files.append(None)
            continue
        with store.files.upload() as upload:
            for record in records:
                line = json.dumps(record, ensure_ascii=False) + "\n"
                upload.write(line.encode())
            stored = upload.finish(f"{name}.{kind}.jsonl", "fine-tune")
        files.append(stored.id)
        hashes.append(stored.sha256)
    return Built(card, [], files, hashes)


if __name__ == "__main__":
    main()
