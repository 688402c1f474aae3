"""Which parameters take a step in a part of them alone, and where that part lies in memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuskern.delivery.grad_home import FixedPart
from wuskern.delivery.part import Part
from wuskern.optim.lines import Lines, lines_of
from wuskern.optim.state import laid_out
from wuskern.sparse_grad import to_rows

Group = dict[str, Any]


class Move(NamedTuple):
    """A step of one parameter in a part of it.

    Attributes:
        values: the gradient of that part, where ``grad`` is sparse; else None. fixed: whether the part is the one that the
            layer always trains, of which alone a state may be kept.
    """

    group: Group
    parameter: Tensor
    part: Part
    values: Tensor | None
    fixed: bool


class Target(NamedTuple):
    """Rows ``[k]`` to be updated of ``param`` ``[N, ...]``; ``moments`` and the gradient ``values`` have all rows or these
    alone."""

    param: Tensor
    moments: list[Tensor]
    rows: Tensor
    values: Tensor


def moves(gradients: Sequence[tuple[Group, Tensor]], parts: dict[int, FixedPart | None]) -> list[Move]:
    """The steps that are of a part: of sparse gradients, and of dense ones that are zero outside of what the layer trains."""
    found: list[Move] = []
    in_question: list[Move] = []
    for group, parameter in gradients:
        known, grad = parts.get(id(parameter)), parameter.grad
        assert grad is not None
        if grad.is_sparse:
            rows = to_rows(grad)
            part = Part(rows.rows, None)
            fixed = known is not None and known.part.same(part)
            found.append(Move(group, parameter, part, rows.values, fixed))
        elif known is not None:
            move = Move(group, parameter, known.part, None, True)
            (found if known.recycled.holds(grad, known.part) else in_question).append(move)
    return found + _without_others(in_question)


def _without_others(in_question: list[Move]) -> list[Move]:
    """The moves whose gradient is zero outside of the part, as one look at each device's gradients says."""
    if not in_question:
        return []
    device = in_question[0].parameter.device
    verdicts = []
    for move in in_question:
        grad: Tensor = move.parameter.grad  # type: ignore[assignment]
        verdicts.append((torch.count_nonzero(grad) == torch.count_nonzero(move.part.take(grad))).to(device, non_blocking=True))
    return [move for move, alone in zip(in_question, torch.stack(verdicts).tolist(), strict=True) if alone]


class LinesOf:
    """The lines of each parameter's part, found once for a part."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Size, Part, Lines]] = {}

    def __call__(self, parameter: Tensor, part: Part) -> Lines:
        key, is_last = id(parameter), parameter.ndim == 4 and not parameter.is_contiguous()
        shape, of_part, lines = self._known.get(key, (None, part, None))
        if lines is None or shape != parameter.shape or lines.is_last != is_last or not of_part.same(part):
            lines = lines_of(part, parameter)
            self._known[key] = parameter.shape, part, lines
        return lines


# ---- targets --------------------------------------------------------------------------------------------------------


def whole_rows(move: Move, moments: list[Tensor]) -> Target:
    """The target of a move whose part is whole rows."""
    values = move.values
    if values is None:
        values = move.part.take(move.parameter.grad)  # type: ignore[arg-type]  # moves have one
    assert move.part.rows is not None
    return Target(move.parameter, moments, move.part.rows, values)


def lines_target(move: Move, moments: list[Tensor], lines: Lines) -> Target:
    """The target of a move in columns: the lines of the weight's memory."""
    parameter: Tensor = move.parameter.detach()
    grad: Tensor = move.parameter.grad  # type: ignore[assignment]
    values = grad if lines.fits(grad) else laid_out(move.part.take(grad), parameter)  # of all lines, or of these
    return Target(lines.of(parameter), [lines.of(m) for m in moments], lines.numbers, lines.of(values))


def copies(move: Move, moments: list[Tensor], are_of_part: bool) -> Target:
    """The target of a move in columns of a weight whose memory has no lines: copies of that part, to be put back."""
    part, grad = move.part, move.parameter.grad
    param, values = part.take(move.parameter.detach()), part.take(grad)  # type: ignore[arg-type]
    kept = moments if are_of_part else [part.take(m) for m in moments]
    return Target(param, kept, torch.arange(len(param), device=param.device), values)


def put_back(move: Move, target: Target, moments: list[Tensor], are_of_part: bool) -> None:
    """Writes the :func:`copies` back to where they were taken."""
    move.part.put(move.parameter, target.param)
    if not are_of_part:
        for moment, values in zip(moments, target.moments, strict=True):
            move.part.put(moment, values)
