"""Draw curves as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hagane.system.files import commit


@dataclass(frozen=True)
class Panel:
    """One diagram: its y axis' label, and curves of (steps, values) by name."""

    label: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Draw the panels below each other over a common axis of steps, and write them atomically."""
    figure = Figure(figsize=(8, 3.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        for name, (steps, values) in panel.curves.items():
            axis.plot(steps, values, label=name, marker="." if len(values) < 30 else "")
        axis.set_ylabel(panel.label)
        axis.grid(alpha=0.3)
        if len(panel.curves) > 1:
            axis.legend()
    axes[-1].set_xlabel("step")
    partial = path.with_name(f".{path.name}.partial")
    FigureCanvasAgg(figure).print_png(partial)  # type: ignore[no-untyped-call]
    commit(partial, path)
