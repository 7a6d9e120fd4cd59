"""The native kernels, and the built-in model inside the package; the rest is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

SOURCES = Path("app/hagane/kernels/cpu")


class BuildWithModels(build_py):
    """Puts `models/` at `hagane/builtin/`, where `hagane.text.hub` looks for it in a wheel."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "hagane", "builtin")
            shutil.copytree("models", target, dirs_exist_ok=True)


setup(
    cmdclass={"build_py": BuildWithModels},
    ext_modules=[
        Extension(
            "hagane.kernels._cpu",
            sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
            depends=sorted(str(path) for path in SOURCES.glob("*") if path.suffix != ".cpp"),
            language="c++",
            extra_compile_args=[
                "-std=c++20",
                "-O3",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-Wno-psabi",
                # GCC's own headers of intrinsics begin vectors with themselves.
                "-Wno-uninitialized",
                "-Wno-maybe-uninitialized",
                "-fvisibility=hidden",
                "-g0",
            ],
            # Without a compiler Hagane still installs, and computes with torch's operators.
            optional=True,
        )
    ],
)
