"""Every command in the documents runs, against a real server, in the order in which it stands.

A block below a comment `<!-- run by hand: WHY -->` is left out. Commands that start a server are
not started: their settings are checked.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hagane.system.settings import PREFIX, Settings
from hagane.text.hub import BUILTIN_MODELS

from tests.support.server import start_server, stop_server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "README.ja.md", *sorted((ROOT / "docs").glob("*.md"))]
JAPANESE = [path for path in DOCUMENTS if path.name.endswith(".ja.md")]
BLOCK = re.compile(
    r"^(?P<mark><!-- run by hand: [^\n]+ -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Ends with the first command that fails; curl fails by the status of the answer too.
SHELL = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; }\n'


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    code: str
    by_hand: bool


def blocks(document: Path) -> list[Block]:
    return [
        Block(found["language"], found["code"], found["mark"] is not None)
        for found in BLOCK.finditer(document.read_text(encoding="utf-8"))
    ]


def commands(code: str) -> list[str]:
    """Whole commands of a shell block: continued lines joined, here-documents with theirs."""
    joined = code.replace("\\\n", "")
    return [found[0] for found in re.finditer(r"^.*<<'(\w+)'\n(?:.*\n)*?\1$|^.+$", joined, re.M)]


def starts_a_server(command: str) -> bool:
    return bool(re.search(r"\bhagane serve\b", command)) and "--help" not in command


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The built-in model, with the admin key that the documents use."""
    directory = tmp_path_factory.mktemp("documented")
    server = start_server(
        BUILTIN_MODELS / "hagane-mini",
        directory / "log",
        *("--data-dir", str(directory / "data")),
        HAGANE_ADMIN_KEY="sk-admin",
    )
    server.wait_ready()
    yield server
    stop_server(server)


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A folder that looks like the repository, to write into."""
    folder = tmp_path
    for name in ("models", "benchmarks", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    binaries = folder / ".venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    command = binaries / "hagane"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hagane.cli.main "$@"\n')
    command.chmod(0o755)
    return folder


def run(program: list[str], text: str, workplace: Path, url: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith((PREFIX, "OPENAI_"))}
    result = subprocess.run(
        program,
        input=text.replace("http://127.0.0.1:8000", url),
        cwd=workplace,
        # `hagane doctor` asks whether the port is free: any will do.
        env=clean | {"PYTHONPATH": str(ROOT / "app"), "HAGANE_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, f"{text}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def check_settings(command: str, workplace: Path, monkeypatch) -> None:
    words = shlex.split(command)
    program = next(at for at, word in enumerate(words) if word.endswith("hagane"))
    monkeypatch.chdir(workplace)
    for name, _, value in (word.partition("=") for word in words[:program]):
        assert name == "HAGANE_CONFIG" or name.removeprefix(PREFIX).lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    Settings(_cli_parse_args=words[program + 2 :], _cli_exit_on_error=False)


# Japanese documents have the same blocks, as a test below makes sure.
@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path not in JAPANESE],
    ids=lambda path: path.name,
)
def test_every_command_works(document, documented, workplace, monkeypatch):
    for block in blocks(document):
        if block.by_hand or block.language not in ("sh", "python"):
            continue
        if block.language == "python":
            run([sys.executable, "-"], block.code, workplace, documented.url)
            continue
        ours = []
        for command in commands(block.code):
            if starts_a_server(command):
                with monkeypatch.context() as patch:
                    # The commands before it may write the file that it reads.
                    run(["bash"], SHELL + "\n".join(ours), workplace, documented.url)
                    ours.clear()
                    check_settings(command, workplace, patch)
            else:
                ours.append(command)
        run(["bash"], SHELL + "\n".join(ours), workplace, documented.url)


def outline(document: Path) -> list[str]:
    """Levels of headings, code blocks whole, links and figures of tables, in order."""
    shape = []
    text = document.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        shape.append(f"block {found['language']} {found['code']}")
    prose = BLOCK.sub("", text)
    for line in prose.splitlines():
        if heading := re.match(r"#+ ", line):
            shape.append(f"heading {heading[0]}")
        elif line.startswith("|"):
            figures = re.findall(r"(?:[x+])?\d(?:[\d.,]*\d)?%?", line)
            shape.append(f"row of {line.count('|') - 1}: {figures}")
        # One link leads to the other language.
        links = [link.replace(".ja.md", ".md") for link in re.findall(r"\]\(([^)]+)\)", line)]
        shape += [link for link in links if document.stem.removesuffix(".ja") not in link]
    return shape


@pytest.mark.parametrize("document", JAPANESE, ids=lambda path: path.name)
def test_japanese_documents_are_equal(document):
    original = document.with_name(document.name.replace(".ja.md", ".md"))
    english, japanese = outline(original), outline(document)
    for ours, theirs in zip(english, japanese, strict=False):
        assert ours == theirs
    assert len(english) == len(japanese)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    prose = BLOCK.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert "://" in target or (document.parent / target).exists(), target


def test_every_setting_is_in_the_documents():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    missing = [
        name
        for name in Settings.model_fields
        if not re.search(rf"`{name}`|--{name.replace('_', '-')}\b|HAGANE_{name.upper()}\b", text)
    ]
    assert not missing, f"say in docs/operating.md what these do: {missing}"


def test_settings_and_metrics_in_the_documents_exist(documented):
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for name in re.findall(r"\bHAGANE_([A-Z_]+)\b", text):
        assert name == "CONFIG" or name.lower() in Settings.model_fields, name
    served = httpx.get(f"{documented.url}/metrics").text
    for metric in re.findall(r"`(hagane_\w+)`", text):
        assert f"# TYPE {metric} " in served, metric
