"""How this copy of Hagane was installed, and the command that adds one of its extras to it."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import tomllib
from pathlib import Path

# Of a clone that `make` installed; of a wheel the folder above its packages.
_ROOT = Path(__file__).resolve().parents[3]


def install_command(extra: str, root: Path = _ROOT) -> str:
    """The command that installs what an extra of pyproject.toml needs, for any directory and shell.

    In a clone it names the requirements themselves, in the versions of constraints.txt: installing
    the clone again would build the kernels again. Where Python has no pip, as in a container image,
    it is the way to get an image that has the extra.
    """
    if importlib.util.find_spec("pip") is None:
        return f"docker build --build-arg EXTRAS={extra} (or add 'hagane[{extra}]' to {sys.prefix})"
    command = [sys.executable, "-m", "pip", "install"]
    constraints = root / "constraints.txt"
    if not constraints.is_file():
        return shlex.join([*command, f"hagane[{extra}]"])
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    requirements = project["optional-dependencies"][extra]
    return shlex.join([*command, "--constraint", str(constraints), *requirements])
