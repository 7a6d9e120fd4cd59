"""Triton's interpreter, several times faster for kernels that call functions of their own.

And right in 8-bit floats and bfloat16.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from triton import language
from triton.runtime import interpreter


def prepare_language_once() -> None:
    """Have the interpreter replace Triton's language once a launch, not at every call in it.

    It would wrap what it has wrapped already, and restores the language only after the launch.
    """
    prepare = interpreter._patch_lang
    prepared: set[str] = set()
    scopes: list[Any] = []

    class Launch:
        def restore(self) -> None:
            prepared.clear()
            while scopes:
                scopes.pop().restore()

    def prepare_once(function: Any) -> Launch:
        modules = [v for v in function.__globals__.values() if inspect.ismodule(v)]
        wanted = {m.__name__ for m in modules if m in (language, language.core)}
        if not wanted <= prepared:
            prepared.update(wanted)
            scopes.append(prepare(function))
        return Launch()

    interpreter._patch_lang = prepare_once


_FLOATS = {
    language.float8e4nv: torch.float8_e4m3fn,
    language.bfloat16: torch.bfloat16,
    language.float16: torch.float16,
    language.float32: torch.float32,
    language.float64: torch.float64,
}
_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def round_as_devices_do() -> None:
    """Have torch convert between float types, and multiply bfloat16 as what it stands for.

    The interpreter loses the carry where rounding reaches the next power of two, and takes the bits
    of bfloat16 for integers in products and in conversions from integers.
    """

    def convert(data: np.ndarray, source: Any, target: Any, _: Any) -> np.ndarray:
        flat = torch.from_numpy(np.ascontiguousarray(data).reshape(-1))
        values = flat.view(_FLOATS[source.scalar]).to(_FLOATS[target.scalar])
        return values.view(_BITS[values.itemsize]).numpy().reshape(np.shape(data))

    builder_type = interpreter.InterpreterBuilder
    multiply, cast = builder_type.create_dot, builder_type.cast_impl

    def create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(builder, widened(a), widened(b), *rest)

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != language.bfloat16:
            return operand
        bits = convert(operand.data, language.bfloat16, language.float32, None)
        return interpreter.TensorHandle(bits.view(np.float32), language.float32)

    def cast_impl(builder: Any, source: Any, target: Any) -> Any:
        if target.scalar != language.bfloat16 or source.dtype.scalar.is_floating():
            return cast(builder, source, target)
        values = source.data.astype(np.float32)
        bits = convert(values, language.float32, language.bfloat16, None)
        return interpreter.TensorHandle(bits, language.bfloat16)

    interpreter._convert_float = convert
    builder_type.create_dot, builder_type.cast_impl = create_dot, cast_impl
