"""Triton's interpreter, several times faster for kernels that call functions of their own."""

from __future__ import annotations

import inspect
from typing import Any

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
