"""Block formats of files, served with the bits that they have: the common grouped form.

Matrices that the model fuses may be of several types. They share the smallest form that holds all
of them: codes stay what they are, groups are split, a symmetric type's zero becomes a minimum.
Scales are rounded to float16, which they are already in all but the K types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels import cpu
from hagane.kernels.cpu import GroupedForm
from hagane.weights.finite import check_finite
from hagane.weights.sources.grouped_rows import GroupedRows
from hagane.weights.sources.source import Rows

# Rows decoded at a time have about so many weights: one thread's work.
_SLICE = 1 << 15
# Rows packed at a time: each time all threads meet.
_TOGETHER = 1 << 21


def common_form(parts: Sequence[Rows]) -> GroupedForm | None:
    """The form that holds all parts of a matrix, or None if they are not in groups.

    Nor has a matrix one whose parts take their inputs in different orders.
    """
    grouped = [part for part in parts if isinstance(part, GroupedRows)]
    known = [part.form for part in grouped if part.form is not None]
    if len(known) < len(parts) or not _is_one([part.input_order for part in grouped]):
        return None
    if len(set(known)) == 1:
        return known[0]
    bits, group = max(form.bits for form in known), min(form.group for form in known)
    return GroupedForm(bits, group, 0, True)


def _is_one(orders: list[Tensor | None]) -> bool:
    given = [order for order in orders if order is not None]
    return not given or (
        len(given) == len(orders) and all(torch.equal(order, given[0]) for order in given[1:])
    )


def pack(
    path: Path,
    parts: Sequence[tuple[str, GroupedRows]],
    form: GroupedForm,
    bias: Tensor | None,
) -> cpu.PackedWeight:
    """The matrix of the named parts, one under the other. Raises ModelError for NaN or infinity."""
    shape = sum(len(rows) for _, rows in parts), parts[0][1].shape[1]
    order = parts[0][1].input_order
    return cpu.pack_grouped(_slices(path, parts, form), shape, form, bias, order)


def collect(
    path: Path, parts: Sequence[tuple[str, GroupedRows]], form: GroupedForm
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes uint8 [out, in], scale and minimum float16 [out, in / group] of the named parts.

    Raises as `pack`.
    """
    slices = list(_slices(path, parts, form))
    codes = torch.cat([codes for codes, _, _ in slices])
    scales = torch.cat([scale for _, scale, _ in slices])
    minima = [minimum for _, _, minimum in slices if minimum is not None]
    return codes, scales, torch.cat(minima) if minima else None


def _slices(
    path: Path, parts: Sequence[tuple[str, GroupedRows]], form: GroupedForm
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Rows in multiples of 16, across the parts' borders, as many as are worth several threads."""
    waiting: list[list[Tensor]] = []
    most, count = max(16, _TOGETHER // parts[0][1].shape[1]), 0
    for name, rows in parts:
        step = max(16, _SLICE // rows.shape[1])
        for start in range(0, len(rows), step):
            waiting.append(_read(path, name, rows, form, start, min(start + step, len(rows))))
            count += len(waiting[-1][0])
            if count < most:
                continue
            read = [torch.cat(pieces) for pieces in zip(*waiting, strict=True)]
            whole = len(read[0]) // 16 * 16
            yield _triple([tensor[:whole] for tensor in read])
            waiting, count = [[tensor[whole:] for tensor in read]], len(read[0]) - whole
    read = [torch.cat(pieces) for pieces in zip(*waiting, strict=True)]
    if len(read[0]):
        yield _triple(read)


def _triple(tensors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    return tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None


def _read(
    path: Path, name: str, rows: GroupedRows, form: GroupedForm, start: int, stop: int
) -> list[Tensor]:
    """Codes, scale and, if `form` has any, minimum of rows [start, stop)."""
    own, groups = rows.form or form, rows.groups(start, stop)
    # A byte's sum wraps around to the unsigned code.
    codes = (groups.codes.view(torch.uint8) + own.zero).view(stop - start, -1)
    scale = groups.scale.view(stop - start, -1).half()
    tensors = [codes, scale]
    if form.has_minimum:
        minimum = scale.float() * (form.zero - own.zero)
        if groups.minimum is not None:
            minimum += groups.minimum.view_as(minimum)
        tensors.append(minimum.half())
    repeats = own.group // form.group
    for index in range(1, len(tensors)):
        check_finite(path, name, tensors[index], start)
        if repeats > 1:
            tensors[index] = tensors[index].repeat_interleave(repeats, dim=1)
    return tensors
