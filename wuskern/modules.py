"""What skippable layers are, with a plan for the weight's backward, and two of them: nn.Linear and nn.Conv2d with one."""

import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.parametrize import is_parametrized

from wuskern import functional
from wuskern.choices import DENSE, Columns, Parts, Plan, Planned, Rows, Units
from wuskern.common.shapes import rows_first
from wuskern.delivery.grad_home import GradHome, refuse_momentum
from wuskern.delivery.part import Part
from wuskern.kinds import LINEAR, Conv2d, Kind

WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # what wrappers call the module inside
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # these call it "module"
PLAN_ATTRIBUTES = ("_plan", "_chosen", "_in_use", "_home", "_asked", "_planned")  # which stock layers lack
FilterFn = Callable[[nn.Module, str], bool]


class _QConfig:
    """The attribute ``qconfig``, with a warning: quantisation sets it on every module, and then changes only exact types."""

    def __get__(self, layer: nn.Module | None, owner: type) -> Any:
        if layer is None or "qconfig" not in layer.__dict__:
            raise AttributeError("qconfig")
        return layer.__dict__["qconfig"]

    def __set__(self, layer: nn.Module, value: Any) -> None:
        layer.__dict__["qconfig"] = value
        warnings.warn(f"quantisation passes a {type(layer).__name__} over: call wuskern.revert(model) first", stacklevel=3)

    def __delete__(self, layer: nn.Module) -> None:
        del layer.__dict__["qconfig"]


class Skippable(Planned, nn.Module):
    """What the skippable layers have that stock layers lack: a plan, of which ``skip``, ``rows``, ``columns`` and ``tokens``
    are views.

    ``layer.skip = True`` makes every following forward remember a bias-only backward: dX and the bias gradient are
    computed, no weight gradient is (``weight.grad`` stays as it was) and the input is not kept. The weight is a constant then,
    in derivatives of any order.

    ``layer.rows = wk.TopK(ratio=.05)`` restricts the weight gradient, and with ``scope="both"`` the input gradient too, to the
    output units with the largest gradients; ``wk.Rows(index)`` to fixed ones. None: all rows. With ``groups``, as many rows are
    chosen in each group.

    ``layer.tokens = wk.Tokens(ratio=.3)`` sums the weight gradient, of all rows or of the chosen ones, over that part of the
    tokens alone: of the elements of the leading dimensions, of a Conv2d of the images of the batch. None: all.

    What does not fit raises where it is assigned. Skip wins over the others. The plan is read in forward; changing it between a
    forward and its backward changes nothing for that backward (activation checkpointing runs forward again in backward: leave
    the plan alone in between). It is not training state: ``state_dict`` does not hold it.
    """

    _plan: Plan = DENSE
    _chosen: Plan = DENSE  # the plan without idle choices
    _in_use: Plan = DENSE  # the plan that forward follows: the chosen one, with what optimizers ask for
    _home: GradHome | None = None
    _asked: bool = False  # whether an optimizer of wuskern.optim holds the weight
    _planned: bool = False  # whether ``_in_use`` is anything but the dense backward
    qconfig = _QConfig()
    __jit_unused_properties__ = (
        *("plan", "kind", "units", "weight_by_rows", "is_sparse", "trains_part", "fixed_part"),
        *Parts.__annotations__,
    )
    __jit_ignored_attributes__ = (*__jit_unused_properties__, *PLAN_ATTRIBUTES, "qconfig")

    @property
    def plan(self) -> Plan:
        """What the next backward does about the weight."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        if not isinstance(plan, Plan):
            raise TypeError(f"plan: expected a Plan, got {plan!r}")
        plan.check(self.units)
        if self._home is None:  # with the first plan, for good: compiled code of a skip then serves after one of rows, too
            self._home = GradHome(self)
            self._asked = self._home.is_asked()
        elif plan.rows is None and plan.columns is None:
            self._home.forget_zeros()
        self._plan, self._chosen = plan, self._followed(plan)
        self._resolve()

    def answer(self, asked: bool) -> None:
        """Takes note of whether an optimizer of ``wuskern.optim`` holds the weight."""
        if asked != self._asked:
            self._asked = asked
            self._resolve()

    def follow(self, plan: Plan | None) -> None:
        """Has forward go by another plan than the layer's own, until one is set; None: by its own again."""
        self._chosen = self._followed(self._plan if plan is None else plan)
        self._resolve()

    def _resolve(self) -> None:
        asked = self._asked or getattr(self, "sparse", False)  # as nn.Embedding is made
        self._in_use = self._chosen.with_sparse(self.units.transposed) if asked else self._chosen
        self._planned = self._in_use != DENSE
        if self.is_sparse:
            refuse_momentum()

    def _followed(self, plan: Plan) -> Plan:
        """The plan without the choices that leave nothing out."""
        return plan.restricting(self.units, many_tokens) or DENSE

    @property
    def is_sparse(self) -> bool:
        """Whether the gradient of the weight is sparse."""
        return self._in_use.is_sparse(self.units.transposed)

    @property
    def trains_part(self) -> bool:
        """Whether only some rows or columns of the weight train."""
        plan = self._in_use
        return not plan.skip and (plan.rows is not None or plan.columns is not None)

    @property
    def fixed_part(self) -> Part | None:
        """The part of the weight that trains, if an optimizer of ``wuskern.optim`` holds it and the choice is a fixed one."""
        weight = self._parameters.get("weight")
        if not self._asked or weight is None:
            return None
        part = self.part_of(self._in_use, weight.device)  # also of a skip that came after the backward
        return part if part.columns is not None or (part.rows is not None and self.is_sparse) else None

    def part_of(self, plan: Plan, device: torch.device) -> Part:
        """The part of the weight, by its own dimensions, that fixed choices of a plan let train; others count as all."""
        rows = plan.rows.index.to(device) if isinstance(plan.rows, Rows) else None
        columns = plan.columns.index.to(device) if isinstance(plan.columns, Columns) else None
        return Part(columns, rows) if self.units.transposed else Part(rows, columns, self.units.groups)

    @property
    def units(self) -> Units:
        """The units that choices have to fit."""
        raise NotImplementedError

    @property
    def weight_by_rows(self) -> Tensor:
        """The weight with its output units in dimension 0, a constant: a view of one that lies transposed."""
        return rows_first(self.weight.detach(), self.units.transposed)  # type: ignore[operator]

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        super().register_parameter(name, param)
        if name == "weight" and self._home is not None:
            self.answer(self._home.is_asked())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "_home" in self.__dict__:  # a copy has one of its own
            self._home = GradHome(self)
            self._asked = self._home.is_asked()
            self._resolve()

    def forget_plan(self) -> None:
        """Removes all that a plan has left on the layer."""
        for name in PLAN_ATTRIBUTES:
            self.__dict__.pop(name, None)

    def extra_repr(self) -> str:
        plan = "" if self.plan == DENSE else f", {self.plan}"
        return super().extra_repr() + plan


class SkippableLinear(Skippable, nn.Linear):
    """An ``nn.Linear`` with the same parameters, initialisation, state_dict and results, and a plan (see :class:`Skippable`).

    x: ``[..., in_features]`` -> ``[..., out_features]``.
    """

    @property
    def kind(self) -> Kind:
        """The kind of layer, which says how its products are called."""
        return LINEAR

    @property
    def units(self) -> Units:
        return Units("Linear", self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.linear(input, self.weight, self.bias)
        if not getattr(self, "_planned", False):  # a wrapper may call this after revert
            return F.linear(input, self.weight, self.bias)
        return functional.planned_linear(input, self.weight, self.bias, self._in_use, self._home)


class SkippableConv2d(Skippable, nn.Conv2d):
    """An ``nn.Conv2d`` with a plan (see :class:`Skippable`); every padding, mode, dilation and group works.

    With ``padding_mode`` "reflect" or "replicate", PyTorch's padding itself keeps the input.

    x: ``[B, in_channels, H, W]`` or ``[in_channels, H, W]``.
    """

    @property
    def kind(self) -> Kind:
        """The kind of layer, which says how its products are called; without stride, padding and dilation."""
        return Conv2d(groups=self.groups)

    @property
    def units(self) -> Units:
        return Units("Conv2d", self.out_channels, self.in_channels, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._conv_forward(input, self.weight, self.bias)
        if not getattr(self, "_planned", False):  # a wrapper may call this after revert
            return self._conv_forward(input, self.weight, self.bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        geometry = self.stride, padding, self.dilation, self.groups
        return functional.planned_conv2d(input, self.weight, self.bias, geometry, self._in_use, self._home)


def many_tokens() -> int:
    """A number of tokens that no choice takes whole, for use ahead of forward, which knows the real one."""
    return sys.maxsize


SkippableLayer = SkippableLinear | SkippableConv2d


def skippable_layers(model: nn.Module) -> dict[str, SkippableLayer]:
    """The converted layers of a model by :func:`plain_name`, each once. Raises ``ValueError`` if there is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {plain_name(model, path): m for path, m in model.named_modules() if isinstance(m, Skippable)}
    if not layers:
        raise ValueError("model: expected at least one converted layer (see wuskern.convert), got none")
    return layers  # type: ignore[return-value]


def product_layers(model: nn.Module) -> dict[str, SkippableLayer]:
    """The converted layers that multiply by their weight: those about which policies decide, which pass embeddings over."""
    layers = {name: m for name, m in skippable_layers(model).items() if m.units.layer != "Embedding"}
    if not layers:
        raise ValueError("model: expected at least one converted layer that is no embedding, got none")
    return layers


def plain_name(model: nn.Module, path: str) -> str:
    """The name that a module of the model has without what ``torch.compile``, checkpointing and DDP wrap around it: the same in
    states that were taken of the wrapped and of the plain model."""
    parts = [part for part in path.split(".") if part not in WRAPPED]
    inside = model._modules.get("_orig_mod", model)
    return ".".join(parts[isinstance(inside, WRAPPERS) :])


def weight_owners(model: nn.Module, layers: Mapping[str, SkippableLayer]) -> list[tuple[Parameter, list[SkippableLayer]]]:
    """Weights, or what they are computed from, that belong to converted layers alone, each with these layers. Raises
    ``ValueError``, by name, if one of the layers is no longer in the model."""
    modules = dict.fromkeys(model.modules())
    _check_layers(modules, layers)
    holders = {_holder(layer): layer for layer in layers.values()}
    owners: dict[Parameter, list[SkippableLayer | None]] = {}
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append(holders[module] if _is_weight(name, module, holders) else None)
    return [(p, [o for o in of_p if o is not None]) for p, of_p in owners.items() if None not in of_p]


def _holder(layer: SkippableLayer) -> nn.Module:
    """The module that holds the weight, or what a parametrization computes it from."""
    return layer.parametrizations["weight"] if is_parametrized(layer, "weight") else layer  # type: ignore[index, return-value]


def _is_weight(name: str, module: nn.Module, holders: dict[nn.Module, SkippableLayer]) -> bool:
    """Whether the parameter ``name`` of ``module`` is a layer's weight or what it is computed from: all of a parametrization,
    and ``weight_orig``, ``weight_g``, ``weight_v`` of the hooks of torch.nn.utils."""
    if module not in holders or module is not holders[module]:
        return module in holders
    return name == "weight" if "weight" in module._parameters else name.startswith("weight_")


def _check_layers(modules: Collection[nn.Module], layers: Mapping[str, SkippableLayer]) -> None:
    for name, layer in layers.items():
        if layer not in modules:
            raise ValueError(
                f"model: expected the layer {name} that the policy was made for, got a model in which it was replaced: "
                "convert the model again and make the policy anew"
            )
