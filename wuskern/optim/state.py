"""What an optimizer keeps of a parameter: moments of all of it, or of the part that trains alone.

The state of a part is torch's with moments of the part's shape, and says which part it is: ``rows``, ``columns``, each ``[k]``,
int64.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern.common.shapes import is_channels_last
from wuskern.delivery.part import Part
from wuskern.kernels import backends

State = dict[str, Any]
OnChange = Literal["widen", "keep", "drop"]
ON_CHANGE = get_args(OnChange)
INDICES = ("rows", "columns")  # keys of a state that holds a part


def part_of(state: State, moments: Sequence[str]) -> Part | None:
    """The part that a state holds; None: all."""
    rows, columns = (state.get(name) for name in INDICES)
    if rows is None and columns is None:
        return None
    groups = 1 if columns is None else len(columns) // max(1, _first(state, moments).shape[1])
    return Part(rows, columns, groups)


def is_of_part(state: State) -> bool:
    """Whether a state holds the moments of a part alone."""
    return any(name in state for name in INDICES)


def fit(state: State, moments: Sequence[str], parameter: Tensor, part: Part | None, on_change: OnChange) -> bool:
    """Makes a state serve a step of a part (None: of all), whose moments alone it holds from then on, and says whether it is
    begun anew.

    Args:
        moments: the names of what has the shape of the parameter. on_change: what becomes of those of another part; see
            ``wuskern.optim.AdamW``.
    """
    is_begun = has_moments(state, moments)
    held = part_of(state, moments) if is_begun else None
    is_same = held is not None and part is not None and held.same(part)
    if is_begun and (is_same or (held is None and (part is None or on_change == "widen"))):
        _name(state, part if is_same else None)  # the same tensors: the next look is a short one
        return False
    if not is_begun or on_change == "drop":
        state.clear()
        state.update({name: zeros_like(parameter) if part is None else _zeros_of(part, parameter) for name in moments})
        _name(state, part if moments else None)
        return True
    target = None if on_change == "widen" else part
    for name in moments:
        of_all = state[name] if held is None else held.put(zeros_like(parameter), state[name])
        state[name] = of_all if target is None else laid_out(target.take(of_all), parameter)
    _name(state, target)
    return False


def whole(state: State, moments: Sequence[str], parameter: Tensor) -> State:
    """A copy of a state with moments of the whole parameter, as torch has them: zeros where the state holds none."""
    held = part_of(state, moments) if has_moments(state, moments) else None
    if held is None:
        return dict(state)
    kept = {name: value for name, value in state.items() if name not in INDICES}
    return kept | {name: held.put(torch.zeros_like(parameter), state[name]) for name in moments}


def has_moments(state: State, moments: Sequence[str]) -> bool:
    """Whether a state has been begun."""
    return any(state.get(name) is not None for name in moments)


def _first(state: State, moments: Sequence[str]) -> Tensor:
    return next(state[name] for name in moments if state.get(name) is not None)


def _name(state: State, part: Part | None) -> None:
    for name, index in zip(INDICES, (None, None) if part is None else part[:2], strict=True):
        if index is None:
            state.pop(name, None)
        else:
            state[name] = index


# ---- memory ---------------------------------------------------------------------------------------------------------


def laid_out(values: Tensor, parameter: Tensor) -> Tensor:
    """The values of a part in the memory format of the parameter."""
    if not parameter.is_contiguous() and is_channels_last(parameter):
        return values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return values.contiguous()


def _zeros_of(part: Part, parameter: Tensor) -> Tensor:
    return laid_out(torch.zeros(part.shape(parameter), dtype=parameter.dtype, device=parameter.device), parameter)


def zeros_like(parameter: Tensor) -> Tensor:
    """Zeros like ``parameter``; in huge pages where it is large and on the CPU: a step that touches rows far apart would wait
    for the page table as much as for the rows."""
    plain = type(parameter) in (Tensor, Parameter) and parameter.device.type == "cpu"
    if not plain or not parameter.numel() or not parameter.is_contiguous() or backends.library_obstacle("cpu"):
        return torch.zeros_like(parameter)
    return torch.ops.wuskern_native.new_output(parameter.detach(), parameter.shape).zero_()
