"""Hagane beside its peers on this machine: alternating runs, medians, ratios.

Usage: python benchmarks/compare.py [--llama PYTHON] [--openvino PYTHON] [--model DIRECTORY]
                                    [--rounds N] [--json FILE]

The load is a random model in Qwen3-0.6B's shape. transformers is always compared; other peers are,
too, where the interpreter of an environment that has them is given:

    python -m venv runs/llama && runs/llama/bin/pip install llama-cpp-python gguf
    python -m venv runs/openvino && runs/openvino/bin/pip install \\
        openvino-genai optimum-intel[openvino] nncf torch
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from model import make_model

from app.kernels import native

HERE = Path(__file__).resolve().parent
PLAN = {"streams": [1, 4, 16, 32], "prompts": [512, 2048], "context": 128, "new_tokens": 32}


def memory_bandwidth() -> float:
    """Bytes per second at which all threads together read memory, the best of five passes."""
    data = torch.ones(1 << 28, dtype=torch.float32)
    best = 0.0
    for _ in range(5):
        begin = time.monotonic()
        data.sum()
        best = max(best, data.nbytes / (time.monotonic() - begin))
    return best


def run(command: list[str]) -> dict:
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def hagane(model: Path, plan: dict) -> dict:
    numbers = {key: ",".join(map(str, plan[key])) for key in ("streams", "prompts")}
    return run([
        sys.executable, "-m", "app.cli", "bench", str(model), "--json",
        "--streams", numbers["streams"], "--prompts", numbers["prompts"], "--rounds", "1",
        "--new-tokens", str(plan["new_tokens"]), "--threads", str(plan["threads"]),
    ])  # fmt: skip


def prepare(model: Path, llama: str | None, openvino: str | None) -> dict[str, Path]:
    """Every file that is compared, made once."""
    if not (model / "config.json").is_file():
        make_model(model)
    files = {"bf16": model}
    for bits in ("int8", "int4"):
        files[bits] = model.with_name(f"{model.name}-{bits}")
        if not files[bits].is_dir():
            command = [sys.executable, "-m", "app.cli", "quantize", str(model), str(files[bits])]
            subprocess.run([*command, f"--{bits}"], check=True)
    for kind in ("Q8_0", "Q4_0") if llama else ():
        files[kind] = model.with_name(f"{model.name}-{kind}.gguf")
        if not files[kind].is_file():
            script = str(HERE / "peer_llama.py")
            paths = [str(model), str(files[kind])]
            subprocess.run([llama, script, "--convert", *paths, kind], check=True)
    if openvino:
        files["g64"] = model.with_name(f"{model.name}-openvino-int4")
        if not files["g64"].is_dir():
            script = str(HERE / "peer_openvino.py")
            paths = [str(model), str(files["g64"])]
            subprocess.run([openvino, script, "--convert", *paths], check=True)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--openvino", help="Python of an environment with OpenVINO's packages")
    parser.add_argument("--model", type=Path, default=Path("runs/qwen3-0.6b-shape"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    files = prepare(options.model, options.llama, options.openvino)
    plan = PLAN | {"threads": len(native.usable_cores()), "rounds": 1}
    plan_file = options.model.with_name("plan.json")
    plan_file.write_text(json.dumps(plan))

    runners = {
        "Hagane bf16": lambda: hagane(files["bf16"], plan),
        "Hagane int8": lambda: hagane(files["int8"], plan),
        "Hagane int4": lambda: hagane(files["int4"], plan),
        "transformers bf16": lambda: run(
            [sys.executable, str(HERE / "peer_transformers.py"), str(options.model), str(plan_file)]
        ),
    }
    for kind in ("Q8_0", "Q4_0") if options.llama else ():
        script = [options.llama, str(HERE / "peer_llama.py"), str(files[kind]), str(plan_file)]
        runners[f"llama.cpp {kind}"] = lambda script=script: run(script)
    if options.openvino:
        peer = [str(HERE / "peer_openvino.py"), str(files["g64"]), str(plan_file)]
        runners["OpenVINO int4 g64"] = lambda: run([options.openvino, *peer])

    bandwidth = memory_bandwidth()
    results: dict[str, list[dict]] = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name, measure in runners.items():
            results[name].append(measure())
            print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)
    if options.json:
        saved = {"bandwidth": bandwidth, "plan": plan, "results": results}
        options.json.write_text(json.dumps(saved, indent=1))
    print(table(results, bandwidth, files))


def table(results: dict[str, list[dict]], bandwidth: float, files: dict[str, Path]) -> str:
    def median(name: str, kind: str, key: int | None = None) -> float:
        values = [r[kind] if key is None else r[kind][str(key)] for r in results[name]]
        return statistics.median(values)

    columns = [("prefill", n) for n in PLAN["prompts"]] + [("decode", n) for n in PLAN["streams"]]
    heads = [f"prefill {n}" for n in PLAN["prompts"]]
    heads += [f"{n} stream{'s' * (n > 1)}" for n in PLAN["streams"]]
    lines = [
        f"Tokens/s, medians of {len(next(iter(results.values())))} alternating runs, "
        f"{len(native.usable_cores())} threads; memory reads at {bandwidth / 1e9:.1f} GB/s.",
        "",
        f"| | {' | '.join(heads)} | start to ready | 1 stream, of the memory limit |",
        "|---" * (len(heads) + 3) + "|",
    ]
    peers = [name for name in results if not name.startswith("Hagane")]
    for name in results:
        cells = [f"{median(name, kind, n):.{0 if n > 4 else 1}f}" for kind, n in columns]
        cells.append(f"{median(name, 'ready_seconds'):.1f} s")
        size = weight_bytes(files.get(name.split()[-1], Path()))
        limit = median(name, "decode", 1) * size / bandwidth
        cells.append(f"{limit:.0%}" if size else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in results:
        if name.startswith("Hagane"):
            ratios = [
                median(name, kind, n) / max(median(peer, kind, n) for peer in peers)
                for kind, n in columns
            ]
            cells = " | ".join(f"x{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {name} : best peer | {cells} | | |")
    return "\n".join(lines)


def weight_bytes(path: Path) -> int:
    names = ("model.safetensors", "openvino_model.bin")
    file = next((path / name for name in names if (path / name).is_file()), path)
    return file.stat().st_size if file.is_file() else 0


if __name__ == "__main__":
    main()
