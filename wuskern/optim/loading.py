"""What a loaded state says of its parts: torch would give their indices the dtype of the parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern.optim.moves import Group
from wuskern.optim.state import INDICES, State, has_moments, is_of_part, part_of

Indices = dict[Tensor, dict[str, Tensor]]  # of each parameter whose state is of a part


def split(
    state_dict: State, owners: Sequence[tuple[Group, Tensor]], moments: Callable[[Group], Sequence[str]]
) -> tuple[State, Indices]:
    """The ``state_dict`` without indices of parts, and these. Raises ``ValueError`` where they do not fit the parameters."""
    states: dict[Any, State] = state_dict["state"]
    ids = [key for group in state_dict["param_groups"] for key in group["params"]]
    indices: Indices = {}
    for key, (group, parameter) in zip(ids, owners, strict=False):  # torch says what is missing
        if key in states and is_of_part(states[key]):
            _check(f"state {key}", states[key], moments(group), parameter)
            indices[parameter] = {name: states[key][name] for name in INDICES if name in states[key]}
    bare = {key: {name: value for name, value in state.items() if name not in INDICES} for key, state in states.items()}
    return state_dict | {"state": bare}, indices


def put_indices(states: dict[Tensor, State], indices: Indices) -> None:
    """Puts the indices back into loaded states."""
    for parameter, of_parameter in indices.items():
        states[parameter].update({name: index.to(parameter.device) for name, index in of_parameter.items()})


def _check(owner: str, state: State, moments: Sequence[str], parameter: Tensor) -> None:
    if not has_moments(state, moments):
        raise ValueError(f"{owner}: expected {', '.join(moments) or 'no part'} as this optimizer has, got {', '.join(state)}")
    indices = {name: state[name] for name in INDICES if name in state}
    for name, index in indices.items():
        if not (isinstance(index, Tensor) and index.dtype is torch.int64 and index.ndim == 1 and len(index)):
            raise ValueError(f"{name} of {owner}: expected numbers in one dimension, int64, got {index!r}")
    part = part_of(state, moments)
    assert part is not None
    sizes = {"rows": parameter.shape[0], "columns": parameter.shape[1:2].numel() * part.groups}
    for name, index in indices.items():
        most = sizes[name]
        if not 0 <= int(index.min()) <= int(index.max()) < most:
            raise ValueError(f"{name} of {owner}: expected numbers from 0 to {most - 1}, got {index.tolist()}")
    for name in moments:
        if name in state and state[name].shape != part.shape(parameter):
            raise ValueError(
                f"{name} of {owner}: expected {list(part.shape(parameter))}, got {list(state[name].shape)}: another part?"
            )
