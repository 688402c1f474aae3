"""What the optimizers for parts share: torch's optimizer for every dense gradient, and an update of a part for the others."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import all of the compiler now
from torch.optim import Optimizer

from wuskern.common.arguments import one_of
from wuskern.delivery.grad_home import FixedPart, ask, fixed_parts, refuse_sharded
from wuskern.optim.loading import put_indices, split
from wuskern.optim.moves import Group, LinesOf, Move, Target, copies, lines_target, moves, put_back, whole_rows
from wuskern.optim.state import ON_CHANGE, OnChange, State, fit, is_of_part, whole

REFUSED = ("capturable", "differentiable")  # arguments of torch's that updates of a part do not have


class PartwiseOptimizer(Optimizer):
    """A base class that comes before one of torch's optimizers; its subclass says how rows are updated.

    torch steps a parameter with a dense ``grad``. One whose ``grad`` is sparse, in rows, moves in those rows, and one whose
    layer trains a fixed part moves in that part. A parameter without a gradient stays where it is, and so does its state."""

    on_change: OnChange = "widen"
    _lines: LinesOf

    def __init__(self, params: Any, *args: Any, on_change: OnChange = "widen", **options: Any) -> None:
        one_of("on_change", on_change, ON_CHANGE)
        self.on_change = on_change
        self._lines = LinesOf()
        super().__init__(params, *args, **options)

    def _moments(self, group: Group) -> Sequence[str]:
        """The names of what a state has in the shape of the parameter."""
        raise NotImplementedError

    def _update(self, group: Group, parameter: Tensor, target: Target, is_first: bool) -> None:
        """Takes one step of the target, which is of that parameter; ``is_first``: its moments are new."""
        raise NotImplementedError

    # ---- which parameters ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Adds the group, as torch does, and asks the layers of its weights for the gradient of a part.

        Raises:
            ValueError: ``capturable`` or ``differentiable``, which updates of a part are not.
        """
        if isinstance(param_group, dict):
            _refuse(self.defaults | param_group)
        super().add_param_group(param_group)
        ask(self)

    # ---- the step -----------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Takes one step and returns the closure's loss, if there is a closure. See the class for what moves.

        Args:
            closure: as for torch's optimizers: computes the gradients anew and returns the loss.

        Raises:
            ValueError: a gradient of a part in a group that is ``capturable`` or ``differentiable`` (from a loaded state_dict);
                rows or columns of a weight that is a DTensor.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        refuse_sharded(self)
        gradients = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        parts = fixed_parts()
        if any(p.grad.is_sparse or id(p) in parts or is_of_part(self.state.get(p, {})) for _, p in gradients):
            self._step_in_parts(gradients, parts)
        else:
            self._stock_step()
        return loss

    @_disable_dynamo
    @torch.no_grad()
    def _step_in_parts(self, gradients: list[tuple[Group, Tensor]], parts: dict[int, FixedPart | None]) -> None:
        in_parts = moves(gradients, parts)
        for move in in_parts:
            _refuse(move.group)  # before anything moves
        moving = {move.parameter for move in in_parts}
        if len(moving) < len(gradients):
            self._step_whole([(group, p) for group, p in gradients if p not in moving], list(moving))
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)  # set by a GradScaler
        if found_inf is not None and bool(found_inf):
            return
        for move in in_parts:
            self._step_part(move, scale)

    def _step_part(self, move: Move, scale: Tensor | None) -> None:
        group, parameter, part, *_ = move
        state, names = self.state[parameter], self._moments(group)
        is_first = fit(state, names, parameter, part if move.fixed else None, self.on_change)
        moments, are_of_part = [state[name] for name in names], is_of_part(state)
        lines = None if part.columns is None else self._lines(parameter, part)
        in_place = lines is None or (parameter.is_cpu and all(map(lines.fits, (parameter, *moments))))
        if lines is None:
            target = whole_rows(move, moments)
        else:
            target = lines_target(move, moments, lines) if in_place else copies(move, moments, are_of_part)
        if scale is not None:
            target = target._replace(values=target.values / scale)
        self._update(group, parameter, target, is_first)
        if not in_place:
            put_back(move, target, moments, are_of_part)

    def _step_whole(self, gradients: list[tuple[Group, Tensor]], others: list[Tensor]) -> None:
        """Takes torch's step of parameters with a dense gradient, and of no others: torch passes over what has no gradient."""
        for group, parameter in gradients:
            if is_of_part(self.state.get(parameter, {})):
                fit(self.state[parameter], self._moments(group), parameter, None, self.on_change)
        held = [parameter.grad for parameter in others]
        try:
            for parameter in others:
                parameter.grad = None
            self._stock_step()
        finally:
            for parameter, gradient in zip(others, held, strict=True):
                parameter.grad = gradient

    def _stock_step(self) -> None:
        """Takes torch's step without the hooks that torch wraps around it: they run once, around :meth:`step`."""
        step = super().step.__func__  # type: ignore[attr-defined]
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)

    # ---- state --------------------------------------------------------------------------------------------------------

    def full_state_dict(self) -> State:
        """The ``state_dict`` as torch's optimizer has it: of a part, with zeros in place of the moments that are not kept."""
        packed = self.state_dict()
        owners = [(group, p) for group in self.param_groups for p in group["params"]]
        ids = itertools.chain.from_iterable(group["params"] for group in packed["param_groups"])
        states = packed["state"]
        full = {
            key: whole(states[key], self._moments(group), p)
            for key, (group, p) in zip(ids, owners, strict=True)
            if key in states
        }
        return packed | {"state": full}

    def load_state_dict(self, state_dict: State) -> None:
        """Loads a ``state_dict``, also one of torch's optimizer. Of a part, it goes on where the layer trains that part.

        Raises:
            ValueError: what torch raises; moments or indices that do not fit the parameter. Nothing is loaded then.
        """
        owners = [(group, p) for group in self.param_groups for p in group["params"]]
        bare, indices = split(state_dict, owners, self._moments)
        super().load_state_dict(bare)
        put_indices(self.state, indices)

    def __getstate__(self) -> State:
        return super().__getstate__() | {"on_change": self.on_change}

    def __setstate__(self, state: State) -> None:  # runs for copies, and after a state_dict is loaded
        super().__setstate__(state)
        self._lines = LinesOf()
        ask(self)


def _refuse(group: Group) -> None:
    for name in REFUSED:
        if group.get(name):
            raise ValueError(
                f"{name}: expected False, got {group[name]!r}: a part is updated outside of captured graphs and of autograd; "
                "torch.optim has optimizers for both"
            )
