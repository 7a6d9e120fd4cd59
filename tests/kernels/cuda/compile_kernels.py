"""Compiles the Triton kernels for a Hopper GPU, as far as that goes without one.

Usage: python compile_kernels.py   (prints one JSON object; in a process of its own, as Triton's
interpreter and its compiler exclude each other)
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from hagane.kernels.cuda import attention, grouped, linear, low_rank, rows, sampling
from hagane.kernels.cuda.tiles import (
    LARGE,
    Tiles,
    decode_tiles,
    prefill_tiles,
    small_tiles,
    vector_tiles,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
TARGET = GPUTarget("cuda", 90, 32)
# Arguments that are multiples of 16 in every model, which Triton notices at the first call.
EVEN = {
    "features", "inputs", "outputs", "groups", "vocab", "x_row", "q_row", "k_row", "v_row",
    "row_stride",
}  # fmt: skip
FLAT = {
    "scale": "fp32", "eps": "fp32", "tops": "*fp32", "totals": "*fp32", "mixes": "*fp32",
    "cos": "*fp32", "sin": "*fp32", "inner": "*fp32", "scales": "*fp32", "row_scale": "*fp32",
    "slots": "*i32", "tables": "*i32", "lengths": "*i32", "starts": "*i32", "table": "*i64",
    "logits": "*fp32", "temperatures": "*fp32", "top_ps": "*fp32", "min_ps": "*fp32",
    "sinks": "*fp32", "uniforms": "*fp32", "top_ks": "*i32", "tokens": "*i64",
}  # fmt: skip
TENSORS = {
    "x", "weight", "out", "qkv", "q_norm", "k_norm", "q", "k", "v", "keys", "values", "gate_up",
    "bias", "residual",
}  # fmt: skip


def build(kernel: Any, tiles: Tiles | None, types: dict[str, str], **constants: Any) -> dict:
    """The compilers' report on one kernel, in bfloat16 but for `types`."""
    names = kernel.arg_names
    signature = {}
    for name in names:
        plain = "*bf16" if name in TENSORS else FLAT.get(name, "i32")
        signature[name] = "constexpr" if name in constants else types.get(name, plain)
    hints = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if signature[name].startswith("*") or name in EVEN
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    options = {} if tiles is None else {"num_warps": tiles.warps, "num_stages": tiles.stages}
    source = ASTSource(kernel, signature, constexprs=values, attrs=hints)
    ptx = triton.compile(source, target=TARGET, options=options).asm["ptx"]
    loads = re.findall(r"ld\.global[\w.:]*|cp\.async[\w.]* .*?;", ptx)
    return {
        "spilt_bytes": _spilt(ptx),
        "wide_loads": sum(".v4" in load or "0x10" in load for load in loads),
        "tensor_cores": "wgmma" in ptx or "mma.sync" in ptx,
    }


def _spilt(ptx: str) -> int:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "kernel.ptx"
        source.write_text(ptx)
        command = [PTXAS, "-v", "-arch=sm_90a", source, "-o", source.with_suffix(".cubin")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))


def build_all() -> dict[str, dict]:
    """In the sizes of an 8B model."""
    decode, prefill = decode_tiles(128, 2), prefill_tiles(128, 2)
    small, vector = small_tiles(64, 4096), vector_tiles(4096)
    paged = {"KV_HEADS": 8, "HEAD_DIM": 128, "DEPTH": 128, "BLOCK_SIZE": 16, "GROUP": 4}
    few = {"ROWS": small.rows, "COLUMNS": small.columns, "BIAS": False, "RESIDUAL": True}
    one = {"ROWS": vector.rows, "BIAS": False, "RESIDUAL": True}
    many = {"ROWS": LARGE.rows, "COLUMNS": LARGE.columns, "DEPTH": LARGE.depth}
    int4 = {"weight": "*u8", "scale": "*bf16"}
    scaled = {"scale": "*fp32"}
    found = {
        "rms_norm": build(rows._rms_norm, None, {}, BLOCK=4096),
        "silu_and_mul": build(rows._silu_and_mul, None, {}, BLOCK=1024),
        "decode": build(
            attention._decode, decode, {"slots": "*i64"}, **paged, GROUP_ROWS=16,
            COLUMNS=decode.columns, WINDOW=0, CAP=0.0, SINKS=True, SPLITS=16,
        ),
        "prefill": build(
            attention._prefill, prefill, {}, **paged, ROWS=prefill.rows, COLUMNS=prefill.columns,
            WINDOW=0, CAP=0.0, SINKS=True,
        ),
        "int8 by int8": build(
            linear._int8_matmul, LARGE, scaled | {"weight": "*i8", "codes": "*i8"}, **many,
            BIAS=False, RESIDUAL=True,
        ),
        "small int4": build(linear._small_int4, small, int4, **few, HALF=32),
        "vector dense": build(
            linear._vector, vector, scaled, **one, DEPTH=vector.depth, SCALED=False
        ),
        "vector int4": build(
            linear._vector_int4, vector, int4, **one, HALF=32, GROUPS=vector.depth // 64
        ),
        "shrink": build(low_rank._shrink, None, {"out": "*fp32"}, MOST=1536, DEPTH=256),
        "expand": build(low_rank._expand, None, {}, MOST=1536, BLOCK=256),
        "sample": build(sampling._sample, Tiles(1, 1, 1, 8, 1), {}, TILE=2048),
    }  # fmt: skip
    for kind, code, limit in (("int8", "*i8", 127.0), ("fp8", "*fp8e4nv", 448.0)):
        types = scaled | {"weight": code, "codes": code}
        found[f"small {kind}"] = build(linear._small, small, types, **few, DEPTH=small.depth)
        found[f"vector {kind}"] = build(
            linear._vector, vector, types, **one, DEPTH=vector.depth, SCALED=True
        )
        found[f"quantize {kind}"] = build(
            linear._quantize_row, Tiles(1, 1, 1, 8, 1), types, LIMIT=limit, BLOCK=16384
        )
    codes = {"codes": "*u8", "scale": "*fp16", "minimum": "*fp16"}
    for bits in (4, 8):
        form = {"BITS": bits, "GROUP": 32, "ZERO": 8, "MINIMUM": True}
        found[f"small of {bits} bits in groups"] = build(
            grouped._small_grouped, small, codes, **few, **form, DEPTH=small.depth
        )
        found[f"vector of {bits} bits in groups"] = build(
            grouped._vector_grouped, vector, codes, **one, **form, DEPTH=vector.depth
        )
    return found


if __name__ == "__main__":
    print(json.dumps(build_all()))
