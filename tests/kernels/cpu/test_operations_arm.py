"""Every kernel on ARM's instruction sets, cross-compiled and run under emulation.

`native/` is a program without Python: it holds each set of a processor to formulas in float64, and
to the generic set where integers are exact.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "app/hagane/kernels/cpu"
CHECKS = Path(__file__).parent / "native"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# What is compiled besides the instruction sets: it needs no header of Python's.
SHARED = ("dispatch", "pool", "experts", "reading")

# The sets of an emulated processor, the best first.
PROCESSORS = {
    "max": ("neon_bf16", "neon_i8mm", "neon", "generic"),
    "neoverse-n1": ("neon", "generic"),  # dot products alone, as Graviton2 and Apple's M1 have
    "cortex-a72": ("generic",),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not shutil.which(COMPILER), reason=f"needs {COMPILER}"),
    pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"needs {EMULATOR}"),
]


def compile_arguments() -> list[str]:
    """The extension's own, as setup.py gives them."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    found = [
        keyword.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "extra_compile_args"
    ]
    return list(ast.literal_eval(found[0]))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm")
    sources = [*sorted(KERNELS.glob("isa_*.cpp")), *(KERNELS / f"{name}.cpp" for name in SHARED)]
    for source in sources:
        build(source, folder, compile_arguments())
    for source in sorted(CHECKS.glob("*.cpp")):
        build(source, folder, ["-std=c++20", "-O1", "-Wall", "-Werror", f"-I{KERNELS}"])
    target = folder / "kernels"
    objects = map(str, sorted(folder.glob("*.o")))
    subprocess.run([COMPILER, "-static", "-pthread", *objects, "-o", str(target)], check=True)
    return target


def build(source: Path, folder: Path, arguments: list[str]) -> None:
    target = folder / f"{source.stem}.o"
    subprocess.run([COMPILER, *arguments, "-c", str(source), "-o", str(target)], check=True)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_kernel_of_every_set(program, processor):
    command = [EMULATOR, "-cpu", processor, str(program), *PROCESSORS[processor]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    for name in PROCESSORS[processor]:
        assert f"{name}: " in done.stdout
