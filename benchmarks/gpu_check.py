"""Test and measure everything on a GPU in one call of at most eight minutes: `make gpu-check`.

Usage: python benchmarks/gpu_check.py [--json FILE] [--seconds N] [--wheels DIR] [--dry-run]
       python benchmarks/gpu_check.py --fetch PYTHON [--wheels DIR]

    1. kernels      every Triton kernel against the reference, on the device
    2. parity       logits, graphs, adapters and greedy text against transformers
    3. figures      the parts of benchmarks/gpu.py, the most telling ones first

Each step is a process with a time limit of its own: one that fails, hangs or runs out of memory
costs itself alone. FILE is written anew after every step, so that a run cut short keeps what it
had. Needs torch, Triton and transformers, and installs nothing: where Hagane's other requirements
are missing, DIR (default .wheels) holds them as wheels, which are unpacked into a temporary folder;
--fetch fills it for a version of Python, such as 3.12, on a machine with a network. --dry-run takes
all steps on the CPU with tiny models; it measures nothing. Exits with 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", "-x")
# Of constraints.txt: what images with torch and transformers mostly lack.
WHEELS = (
    "annotated-doc", "annotated-types", "fastapi", "greenlet", "httpcore2", "httptools", "httpx2",
    "jiter", "msgspec", "openai", "opentelemetry-api", "pydantic",
    "pydantic-settings", "pydantic_core", "pytest-asyncio", "python-dotenv", "python-multipart",
    "sniffio", "SQLAlchemy", "sse-starlette", "starlette", "truststore", "typing-inspection",
    "uvicorn",
)  # fmt: skip
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
# Lines of a failed step's output that are kept.
TAIL = 40


@dataclass(frozen=True)
class Step:
    """One process: its command, and the seconds that it may take."""

    name: str
    seconds: float
    command: tuple[str, ...]


def steps(folder: Path, dry_run: bool) -> Iterator[Step]:
    """All steps, the most informative first; their limits add up to less than eight minutes."""
    kernels = "tests/kernels/cuda/test_rows.py" if dry_run else "tests/kernels/cuda"
    yield Step("kernels", 90, (*TEST, kernels, "tests/gpu/test_gpu_kernels.py"))
    yield Step("parity", 70, (*TEST, "tests/gpu/test_gpu_model.py"))
    limits = {
        "bf16": 95, "int4": 45, "small": 30, "transformers": 50, "training": 35, "pretraining": 40,
    }  # fmt: skip
    for part, seconds in limits.items():
        found = folder / f"{part}.json"
        command = (sys.executable, "benchmarks/gpu.py", "--parts", part, "--rounds", "1")
        yield Step(
            part,
            seconds,
            (*command, "--json", str(found), *(("--dry-run",) if dry_run else ())),
        )


def run(step: Step, seconds: float, environment: dict[str, str]) -> dict:
    """The step's outcome: ok, seconds, and the end of its output if it failed."""
    print(f"== {step.name} (at most {seconds:.0f} s)", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        # A process group of its own: what it has started ends with it.
        process = subprocess.Popen(
            step.command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = f"stopped after {seconds:.0f} s"
        output.seek(0)
        lines = output.read().splitlines()
    print("\n".join(lines[-TAIL:]), flush=True)
    outcome: dict = {"ok": code == 0, "seconds": round(time.monotonic() - began, 1)}
    return outcome if code == 0 else outcome | {"status": code, "output": lines[-TAIL:]}


def fetch(wheels: Path, version: str) -> None:
    """Download WHEELS, as constraints.txt pins them, for Linux on x86-64."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-"): line for line in lines}
    wanted = [name.lower().replace("_", "-") for name in WHEELS]
    pinned = [pins[name] for name in wanted if name in pins]
    platforms = [f"--platform=manylinux_{name}_x86_64" for name in PLATFORMS]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        f"--python-version={version}", "--implementation=cp", *platforms,
        "--platform=manylinux2014_x86_64", "--dest", str(wheels), *pinned,
    ]  # fmt: skip
    subprocess.run(command, check=True)


def packages(folder: Path, wheels: Path) -> dict[str, str]:
    """The environment in which the wheels' packages are found, behind those that are installed."""
    site, hook = folder / "site", folder / "hook"
    for directory in (site, hook):
        directory.mkdir()
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    # PYTHONPATH goes before what is installed; only Python itself can append at its start.
    (hook / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(site)!r})\n")
    paths = (str(ROOT / "app"), os.environ.get("PYTHONPATH", ""), str(hook))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--fetch", metavar="PYTHON")
    options = parser.parse_args()
    if options.fetch:
        fetch(options.wheels, options.fetch)
        return
    deadline = time.monotonic() + options.seconds
    results: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | packages(folder, options.wheels)
        for step in steps(folder, options.dry_run):
            left = deadline - time.monotonic()
            if left < 5:
                results[step.name] = {"ok": False, "status": "no time was left"}
                continue
            results[step.name] = run(step, min(step.seconds, left), environment)
            found = folder / f"{step.name}.json"
            if found.is_file():
                results[step.name]["figures"] = json.loads(found.read_text())
            options.json.write_text(json.dumps(results, indent=1))
    failed = [name for name, outcome in results.items() if not outcome["ok"]]
    print(f"{options.json}: {len(results) - len(failed)} steps of {len(results)} passed", end="")
    print(f"; failed: {', '.join(failed)}" if failed else "")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
