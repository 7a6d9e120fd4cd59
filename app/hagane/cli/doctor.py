"""`hagane doctor`: what is found here, what will be used, what is missing and how to get it."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
import torch

from hagane import __version__
from hagane.cli.command import read
from hagane.engine.step.runner import resolve_dtype
from hagane.kernels import cpu
from hagane.kernels.backend import choose
from hagane.kernels.devices import resolve_device
from hagane.system.errors import HaganeError
from hagane.system.installation import install_command
from hagane.system.logging import configure_logging
from hagane.system.machine import available_memory, memory_limit, usable_cores
from hagane.system.setting_groups import GROUPS
from hagane.system.settings import CONFIG_VARIABLE, Settings, refuse_unknown_variables
from hagane.text.hub import local_model, model_stores
from hagane.text.recommended import fast_choices
from hagane.weights.sources.config import load_config

Status = Literal["ok", "missing", "error"]

# CPU features that the kernels use, in /proc/cpuinfo's names.
_CPU_FLAGS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
# Tokens per second below which an answer is slower than reading it.
_COMFORTABLE = 10.0
_COPIED_BYTES = 128 << 20
_COPIES = 3
_COMPILERS = ("c++", "g++", "clang++")
_EXTRAS = {"opentelemetry-sdk": "otel", "opentelemetry-exporter-otlp-proto-http": "otel"}


@dataclass(frozen=True)
class Finding:
    """One line of the report: `missing` costs something, `error` keeps the server from running."""

    topic: str
    status: Status
    text: str
    remedy: str | None = None


class DoctorSettings(Settings):
    """Report what is found here, what a server would use, and what is missing.

    Takes every option of `hagane serve`, and --json to print one JSON object.
    """


def run(arguments: list[str]) -> int:
    """Print the report; 1 when something keeps the server from running."""
    as_program = "--json" in arguments
    refuse_unknown_variables()
    configure_logging("error", "auto")
    rest = [argument for argument in arguments if argument != "--json"]
    epilog = "The exit status is 1 when something keeps the server from running."
    findings = examine(read(DoctorSettings, rest, "doctor", GROUPS, epilog))
    print(json.dumps(as_json(findings)) if as_program else as_text(findings))
    return 1 if failed(findings) else 0


def examine(settings: Settings) -> list[Finding]:
    """Every finding for a server with these settings; nothing is started, fetched or kept."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _system, _processor, _memory, _gpus, _kernels, _libraries, _models, _data, _address, _plan,
        _advice,
    )  # fmt: skip
    return [finding for check in checks for finding in check(settings)]


def installed_versions() -> dict[str, str]:
    """The version of every distribution that is installed, by its name as PEP 503 writes it."""
    return {
        _canonical(distribution.name): distribution.version
        for distribution in metadata.distributions()
        if distribution.name
    }


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def as_json(findings: list[Finding]) -> dict[str, object]:
    """The report for programs: `status` is the worst of all findings."""
    return {
        "status": "error" if failed(findings) else "ok",
        "findings": [asdict(finding) for finding in findings],
    }


def as_text(findings: list[Finding]) -> str:
    """The report for people: one line a finding, the remedy below it."""
    marks = {"ok": "ok", "missing": "--", "error": "!!"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.status]} {finding.topic:10} {finding.text}")
        if finding.remedy is not None:
            lines.append(f"{'':14}-> {finding.remedy}")
    return "\n".join(lines)


def failed(findings: list[Finding]) -> bool:
    """Whether something keeps the server from running."""
    return any(finding.status == "error" for finding in findings)


def _system(_: Settings) -> Iterator[Finding]:
    yield Finding("hagane", "ok", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("system", "ok", platform.platform())


def _processor(_: Settings) -> Iterator[Finding]:
    name, flags = _cpuinfo()
    found = [flag for flag in _CPU_FLAGS if flag in flags]
    yield Finding("cpu", "ok", f"{name}; {' '.join(found) or 'no vector extensions known here'}")
    usable = len(usable_cores())
    text = (
        f"{os.cpu_count()} there, {len(os.sched_getaffinity(0))} by affinity, {usable} usable "
        "under the control group's quota"
    )
    yield Finding("cores", "ok", text)


def _cpuinfo() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.MULTILINE)
    return (
        name[1] if name else platform.machine(),
        set(flags[1].split()) if flags else set(),
    )


def _memory(_: Settings) -> Iterator[Finding]:
    total, limit = psutil.virtual_memory().total, memory_limit()
    text = f"{_size(available_memory())} available of {_size(limit)}"
    if limit < total:
        text += f" (the control group's limit; the machine has {_size(total)})"
    yield Finding("memory", "ok", text)


def _gpus(_: Settings) -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        text = f"cuda:{index} {device.name}, {_size(device.total_memory)}"
        yield Finding("gpu", "ok", f"{text}, compute capability {device.major}.{device.minor}")
    if torch.cuda.is_available():
        return
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        yield Finding(
            "gpu",
            "missing",
            f"an NVIDIA device, which torch {torch.__version__} cannot use",
            "install the CUDA build of torch (pytorch.org has the command for your driver)",
        )
    else:
        yield Finding("gpu", "ok", "none; everything runs on the CPU")


def _kernels(_: Settings) -> Iterator[Finding]:
    if cpu.available():
        yield Finding("kernels", "ok", f"native, instruction set {cpu.instruction_set()}")
    else:
        yield missing_kernels(next(filter(shutil.which, _COMPILERS), None))


def missing_kernels(compiler: str | None) -> Finding:
    """Kernels that were not built, and the way to have them where `compiler` is the one there."""
    rebuild = "touch setup.py && make install"
    return Finding(
        "kernels",
        "missing",
        "the native kernels were not built: torch's operators are several times slower",
        f"{compiler} is there now: {rebuild}"
        if compiler
        else f"install a C++20 compiler (Debian: apt-get install g++), then: {rebuild}",
    )


def _libraries(_: Settings) -> Iterator[Finding]:
    try:
        required = metadata.requires("hagane") or []
    except metadata.PackageNotFoundError:
        yield Finding("libraries", "missing", "hagane runs uninstalled", "make install")
        required = []
    yield from libraries(required, installed_versions())


def libraries(required: Sequence[str], versions: Mapping[str, str]) -> Iterator[Finding]:
    """The requirements (lines as in package metadata) that are among the `versions`."""
    for line in required:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if "extra ==" not in line and _canonical(name) not in versions:
            yield Finding("libraries", "error", f"{name} is not installed", "make install")
    shown = ("torch", "numpy", "tokenizers", "safetensors", "fastapi", "uvicorn", "pydantic")
    text = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    yield Finding("libraries", "ok", text)
    lacking = sorted({extra for name, extra in _EXTRAS.items() if name not in versions})
    for extra in lacking:
        yield Finding(
            "libraries",
            "missing",
            "OpenTelemetry's SDK: no traces are sent",
            f"if you want them: {install_command(extra)}",
        )


def _models(settings: Settings) -> Iterator[Finding]:
    found = [
        path.parent for store in model_stores(settings) for path in store.glob("*/config.json")
    ]
    for directory in sorted(found):
        try:
            config = load_config(directory)
        except HaganeError as error:
            yield Finding("models", "missing", f"{directory.name}: {error}")
            continue
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        text = f"{directory.name}: {config.architecture}, {config.dtype}, {_size(size)}"
        yield Finding("models", "ok", f"{text}, {config.max_position_embeddings} tokens of context")


def _data(settings: Settings) -> Iterator[Finding]:
    directory = settings.data_dir.resolve()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError:
        yield Finding(
            "data",
            "error",
            f"data_dir {directory} cannot be written",
            "make it writable for this user, or set data_dir (HAGANE_DATA_DIR)",
        )
        return
    free = shutil.disk_usage(existing).free
    state = "writable" if existing == directory else "made at the first start"
    yield Finding("data", "ok", f"{directory}: {state}, {_size(free)} free")


def _address(settings: Settings) -> Iterator[Finding]:
    host, port = settings.host, settings.port
    if host not in ("127.0.0.1", "::1", "localhost") and not settings.keys:
        yield Finding(
            "address",
            "missing",
            f"{host} may be reached from other machines, and no key is required",
            "set api_keys (HAGANE_API_KEYS)",
        )
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = f"end what listens there, or take another: --port {port + 1}"
            yield Finding("address", "error", f"{host}:{port}: {error.strerror}", remedy)
            return
    yield Finding("address", "ok", f"{host}:{port} is free")


def _plan(settings: Settings) -> Iterator[Finding]:
    """A forecast of `hagane serve` with these settings."""
    try:
        device = resolve_device(settings.device)
        directory = local_model(settings.model, model_stores(settings))
        if directory is None:
            text = f"{settings.model} is fetched from the hub at the first start"
            yield Finding("plan", "ok", text)
            return
        dtype = resolve_dtype(settings.dtype, load_config(directory).dtype)
    except HaganeError as error:
        yield Finding("plan", "error", str(error), "see `hagane serve --help`")
        return
    # A backend is a module: its last name is what it is called.
    backend = getattr(choose(device, dtype), "__name__", "").rpartition(".")[2]
    source = os.environ.get(CONFIG_VARIABLE)
    yield Finding(
        "plan",
        "ok",
        f"serve {directory.name} on {device} in {str(dtype).removeprefix('torch.')}, "
        f"quantize {settings.quantize}, {backend} kernels, "
        f"{settings.threads or len(usable_cores())} threads"
        + (f", settings from {source}" if source else ""),
    )


def _advice(settings: Settings) -> Iterator[Finding]:
    """The model to begin with, by this machine's memory and the speed of it."""
    if torch.cuda.is_available():
        memory, speed_of = torch.cuda.get_device_properties(0).total_memory, "cuda:0"
    else:
        memory, speed_of = available_memory(), "cpu"
    bandwidth = copy_bandwidth(torch.device(speed_of))
    choice = next(fast_choices(memory, bandwidth, _COMFORTABLE), None)
    if choice is None:
        yield Finding("advice", "ok", "no model of `hagane models recommend` fits: stay with the "
                      "built-in one")  # fmt: skip
        return
    model, quantize, speed = choice
    yield Finding(
        "advice",
        "ok",
        f"{bandwidth / 1e9:.0f} GB/s of memory bandwidth carry at most {speed:.0f} tokens per "
        f"second of {model}: hagane serve --model {model} --quantize {quantize}; others: hagane "
        "models recommend",
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, the best of three."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    best = math.inf
    for _ in range(_COPIES):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * _COPIED_BYTES / best


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
