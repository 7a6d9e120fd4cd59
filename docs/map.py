"""Print the lines of each floor and what each package imports: `python docs/map.py`.

| column | meaning |
|---|---|
| lines | of Python, blank lines and comments included |
| imports | packages of hagane, with the number of modules that import them |
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "app" / "hagane"


def imported(path: Path) -> set[str]:
    """Packages of hagane that a module imports, by either statement, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "hagane":
            names |= {f"hagane.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    targets = {name.split(".")[1] for name in names if name.startswith("hagane.")}
    return {name for name in targets if (SOURCE / name).is_dir()}


def packages() -> dict[str, tuple[int, Counter[str]]]:
    """Lines and imports of each package."""
    found = {}
    for folder in sorted(path.parent for path in SOURCE.glob("*/__init__.py")):
        modules = list(folder.rglob("*.py"))
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules)
        uses = Counter(name for path in modules for name in imported(path))
        uses.pop(folder.name, None)
        found[folder.name] = (lines, uses)
    return found


def order(found: dict[str, tuple[int, Counter[str]]]) -> list[str]:
    """Packages from the top down: each before those that it imports."""
    placed: list[str] = []

    def place(name: str) -> None:
        for other in sorted(found[name][1]):
            if other in found and other not in placed:
                place(other)
        if name not in placed:
            placed.append(name)

    for name in found:
        place(name)
    return placed[::-1]


def main() -> None:
    found = packages()
    rows = [
        (name, lines, ", ".join(f"{other} {count}" for other, count in sorted(uses.items())))
        for name in order(found)
        for lines, uses in [found[name]]
    ]
    for name, lines, uses in rows:
        sys.stdout.write(f"{name:12}{lines:7,}  {uses}\n")
    edges = sum(len(uses) for _, uses in found.values())
    total = sum(lines for lines, _ in found.values())
    sys.stdout.write(f"{len(found)} packages, {total:,} lines, {edges} edges\n")


if __name__ == "__main__":
    main()
