"""The floors of docs/architecture.md, read from the import graph."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "app"

# From the ground up. Packages of one floor do not import each other.
FLOORS = (
    {"system"},
    {"kernels"},
    {"models"},
    {"weights"},
    {"data", "graders", "text", "toolbox"},
    {"lora"},
    {"store"},
    {"pool"},
    {"engine", "generation", "training"},
    {"evaluation"},
    {"api"},
    {"server"},
    {"cluster"},
    {"cli"},
)
# The compiled kernels, which import nothing.
EXTENSION = "hagane.kernels._cpu"
# Modules of the server's process, and what they never import while it starts, at any depth: torch
# takes most of a second and 200 MB, numpy 60 ms and 11 MB, the others 2 to 10 MB each. A function
# that needs one imports it: few servers download, call webhooks or draw.
IN_THE_SERVER = (
    "hagane.cli.main",
    "hagane.cli.serve",
    "hagane.server.app",
    "hagane.store.store",
    "hagane.text.hub",
    "hagane.data.records",
    "hagane.pool.models",
    "hagane.server.http_servers",
)
HEAVY = (
    "fsspec",
    "gguf",
    "httpx",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "mcp",
    "numpy",
    "psycopg",
    "pypdf",
    "rich",
    "torch",
    "transformers",
    "triton",
)


@cache
def modules() -> dict[str, Path]:
    """The file of every module, by its dotted name; a package is named without `__init__`."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, *, run: bool = False) -> set[str]:
    """Modules that `name` imports by either statement; with `run`, only those at its top level."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _running(tree.body) if run else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            module = node.module or ""
            members = {f"{module}.{alias.name}" for alias in node.names}
            known = {*modules(), EXTENSION}
            found |= {member if member in known else module for member in members}
    return found - {name}


def _running(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that importing runs: not those of functions, nor under TYPE_CHECKING."""
    statements: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        statements.append(node)
        for part in ("body", "orelse", "finalbody"):
            statements += _running(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            statements += _running(handler.body)
    return statements


def package(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "hagane" else ""


def floor(name: str) -> int:
    return next(level for level, packages in enumerate(FLOORS) if name in packages)


def reached(name: str) -> dict[str, str]:
    """Everything that importing `name` imports, and who asks for it."""
    asked = {name: ""}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        parents = [current.rsplit(".", depth)[0] for depth in range(1, current.count(".") + 1)]
        for other in {*imports(current, run=True), *parents} - set(asked):
            asked[other] = current
            if other in modules():
                waiting.append(other)
    return asked


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downwards(name):
    own = package(name)
    for other in imports(name):
        target = package(other)
        if target in ("", own):
            continue
        assert floor(target) < floor(own), f"{name} imports {other} from its own or a higher floor"


def test_no_circles():
    """Modules that importing each other would tie together, inside a package or across them."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for other in imports(name, run=True) & set(modules()):
            visit(other, (*path, name))
        done.add(name)

    for name in modules():
        visit(name, ())


@pytest.mark.parametrize("name", IN_THE_SERVER)
def test_the_server_starts_without_heavy_libraries(name):
    asked = reached(name)
    for heavy in HEAVY:
        assert heavy not in {other.split(".")[0] for other in asked}, f"{name} imports {heavy}"


def test_the_http_process_starts_without_heavy_libraries():
    """Those that other libraries would bring are found only here."""
    code = f"import sys, {', '.join(IN_THE_SERVER)}; print({{*{HEAVY}}} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("name", sorted(modules()))
def test_files_stay_small(name):
    assert len(modules()[name].read_text(encoding="utf-8").splitlines()) <= 400


# Tests of something that is no Python package, or that needs a machine of its own.
OTHER_TESTS = {"docker", "docs", "gpu", "support", "web"}


def test_tests_mirror_the_package():
    """`hagane/x/y.py` is tested by `tests/x/test_y.py`; more of it by `tests/x/test_y_topic.py`."""
    for path in TESTS.rglob("test_*.py"):
        folder = path.parent.relative_to(TESTS)
        if folder == Path() or folder.parts[0] in OTHER_TESTS:
            continue
        candidates = [other.stem for other in (SOURCE / "hagane" / folder).glob("*.py")]
        candidates += [other.stem for other in path.parent.glob("*.py") if other != path]
        tested = path.stem.removeprefix("test_")
        assert any(f"{tested}_".startswith(f"{name}_") for name in candidates), (
            f"{path.relative_to(TESTS)}: no module of hagane/{folder} is called so"
        )


MAP = (TESTS.parent / "docs" / "architecture.md", *TESTS.parent.glob("docs/internals/*.md"))


@pytest.mark.parametrize("document", MAP, ids=lambda path: path.name)
def test_documents_name_files_that_exist(document):
    """Paths are below app/hagane/, or below the repository."""
    named = set(re.findall(r"`([\w./]+/[\w.]*|[\w./]+/[\w]+\.\w+)`", document.read_text("utf-8")))
    for path in named:
        places = (SOURCE / "hagane" / path, TESTS.parent / path)
        assert any(place.exists() for place in places), f"{document.name} names {path}"


def test_every_floor_is_in_the_document():
    table = MAP[0].read_text("utf-8")
    for level, packages in enumerate(FLOORS, 1):
        for name in packages:
            assert re.search(rf"^\| {level} \| .*`{name}/`", table, re.MULTILINE), (level, name)


def test_questions_have_their_answers_where_they_say():
    text = (TESTS.parent / "docs" / "internals" / "questions.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 20
    for path, name in rows:
        source = (SOURCE / "hagane" / path).read_text("utf-8")
        assert re.search(rf"\b{name}\b", source), f"{path} has no {name}"
