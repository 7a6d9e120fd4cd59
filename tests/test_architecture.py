"""The floors of docs/architecture.md, and the size of a room."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "settings": 0, "errors": 0, "telemetry": 0, "files": 0, "machine": 0, "__init__": 0,
    "kernels": 1, "transformer": 2, "store": 2,
    "engine": 3, "training": 3, "evaluation": 3, "api": 4,
    "main": 5, "server": 5, "cli": 5, "chat_client": 5, "bench": 5, "doctor": 5,
}  # fmt: skip
FILES = sorted((ROOT / "app").rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "app":
            names = [alias.name for alias in node.names] if node.module == "app" else [""]
            imported |= {room(f"{node.module}.{name}" if name else node.module) for name in names}
    imported = {name if name in FLOORS else "__init__" for name in imported} - {own}
    for name in imported:
        assert FLOORS[name] <= FLOORS[own], f"{own} imports {name} from a higher floor"
        assert {name, own} != {"engine", "training"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_http_process_starts_without_torch():
    """Importing torch takes most of a second and 200 MB; only the engine process computes."""
    code = "import sys, app.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
