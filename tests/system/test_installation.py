"""The command for an extra, in a clone, from a wheel, and where there is no pip."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hagane.system.installation import install_command

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = sorted(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_clone_installs_the_requirements_in_its_versions(extra):
    python, *command = shlex.split(install_command(extra))
    assert python == sys.executable
    options = ["-m", "pip", "install", "--constraint", str(ROOT / "constraints.txt")]
    assert command == [*options, *PROJECT["optional-dependencies"][extra]]


def test_pip_understands_the_command_in_any_directory(tmp_path):
    *command, requirement = shlex.split(install_command("mcp"))
    command += ["--dry-run", "--no-deps", "--no-index", requirement]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    # Without an index it may find nothing to install; it stumbles over no option and no path.
    for mistake in ("no such option", "Usage:", "Invalid requirement", "No such file", "Traceback"):
        assert mistake not in result.stderr


def test_a_wheel_installs_its_own_extra(tmp_path):
    assert shlex.split(install_command("pdf", tmp_path))[1:] == ["-m", "pip", "install",
                                                                "hagane[pdf]"]  # fmt: skip


def test_an_image_is_built_with_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install_command("cluster").startswith("docker build --build-arg EXTRAS=cluster ")
