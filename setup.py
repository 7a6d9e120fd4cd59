"""The native kernels; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("app/hagane/kernels/cpu")

setup(
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
    ]
)
