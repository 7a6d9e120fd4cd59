"""Draws the charts of the README from the tables of docs/benchmarks.md: python docs/charts.py."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
OURS, THEIRS = "#b5482a", "#8a94a0"
# What is left of a name in a chart.
SHORT = {"OpenVINO int4 g64": "OpenVINO int4", "Hagane, int8 base": "Hagane, int8",
         "Hagane, bf16 base": "Hagane, bf16",
         "PEFT with transformers, bf16 base": "PEFT, bf16"}  # fmt: skip


def table(heading: str) -> tuple[list[str], dict[str, list[str]]]:
    """Column names and rows, by their first cell, of the first table below a heading."""
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    below = text.split(f"\n### {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    if lines is None:
        raise ValueError(f"there is no table below {heading!r}")
    cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in
             lines[0].splitlines()]  # fmt: skip
    head, _, *rows = cells
    return head[1:], {row[0]: row[1:] for row in rows if " : " not in row[0]}


def number(cell: str) -> float:
    """The figure at the beginning of a cell."""
    found = re.match(r"[\d.]+", cell)
    if found is None:
        raise ValueError(f"{cell!r} does not begin with a figure")
    return float(found[0])


def bars(axes: plt.Axes, values: dict[str, float], title: str, unit: str) -> None:
    """Horizontal bars, ours in colour, each with its figure."""
    names = list(values)
    colours = [OURS if name.startswith("Hagane") else THEIRS for name in names]
    drawn = axes.barh([SHORT.get(name, name) for name in names], list(values.values()),
                      color=colours)  # fmt: skip
    axes.bar_label(drawn, fmt=" %g", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(f"{title}, {unit}", fontsize=10, loc="left")
    axes.tick_params(labelsize=8, length=0)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)


def draw(name: str, charts: list[tuple[str, str, str, str]]) -> None:
    """One file of charts: (heading of the table, column, title, unit) each."""
    figure, places = plt.subplots(1, len(charts), figsize=(9.6, 2.4), layout="constrained")
    for axes, (heading, column, title, unit) in zip(places, charts, strict=True):
        columns, rows = table(heading)
        at = columns.index(column)
        bars(axes, {row: number(cells[at]) for row, cells in rows.items()}, title, unit)
    # White behind it: the page may be dark.
    figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "hagane"
    draw("speed", [
        ("Engines", "prefill 512", "prompt of 512 tokens", "tok/s"),
        ("Engines", "1 stream", "1 stream", "tok/s"),
        ("Engines", "16 streams", "16 streams", "tok/s"),
    ])  # fmt: skip
    draw("memory", [
        ("Engines", "peak memory", "serving, peak", "GB"),
        ("Fine-tuning", "peak memory", "LoRA fine-tuning, peak", "GB"),
        ("Fine-tuning", "tokens per second", "LoRA fine-tuning", "tok/s"),
    ])  # fmt: skip
