"""The published files: the source distribution, the wheel built from it, and a server from that."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import hagane
import httpx
import pytest

from tests.support.server import clean_environment, start_server, stop_server

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"

# Compiling the kernels takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """A command's output, without this checkout on its path."""
    environment = clean_environment() | {"PYTHONPATH": "", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", BUILD_SDIST, folder)
    (made,) = folder.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the source distribution alone, in a folder that has seen no other build."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sdist)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel installed; the libraries it requires are this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    installed = folder / "bin" / "python"
    run(*PIP, "--python", installed, "install", "--no-deps", wheel)
    # A path file inside that directory, such as an editable install has, is not read from here.
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed


def test_the_source_distribution_is_complete_and_has_no_binaries(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.py", "models/hagane-mini/model.safetensors"} <= names
    assert "app/hagane/kernels/cpu/ops.h" in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_the_wheel_carries_model_pages_kernels_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = archive.read(metadata).decode().splitlines()
    assert {f"Version: {hagane.__version__}", "License-Expression: Apache-2.0"} <= set(described)
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert [name for name in names if name.startswith("hagane/kernels/_cpu.")]
    for folder, source in (("builtin", "models"), ("web", "app/hagane/web")):
        expected = {
            f"hagane/{folder}/{path.relative_to(ROOT / source).as_posix()}"
            for path in (ROOT / source).rglob("*")
            if path.is_file()
        }
        assert expected <= set(names)


def test_a_server_from_the_wheel_answers(python, tmp_path):
    where = run(python, "-c", "import hagane; print(hagane.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1])
    server = start_server(
        Path("hagane-mini"), tmp_path / "log", "--data-dir", str(tmp_path / "data"),
        python=python, PYTHONPATH="", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    try:
        server.wait_ready()
        body = {"model": "hagane-mini", "messages": [{"role": "user", "content": "Hello"}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"]
        assert httpx.get(server.url).text.lower().startswith("<!doctype html>")
        assert "torch's operators" not in server.log.read_text()
    finally:
        stop_server(server)
