"""``wk.profile``: the measuring itself."""

import time
from typing import Any

import torch
import torch.nn as nn

from wuskern.choices import DENSE
from wuskern.common.arguments import positive
from wuskern.common.example import Example, arguments
from wuskern.common.untouched import untouched
from wuskern.convert import Findings, convert, survey
from wuskern.modules import FilterFn, Skippable, SkippableLayer, plain_name
from wuskern.policies.freezing.prefix import check_unfrozen
from wuskern.profile.layers import layer_times
from wuskern.profile.machine import environment, quietly, said_of_load
from wuskern.profile.race import Race
from wuskern.profile.result import LeftAlone, Profile
from wuskern.profile.step import Loss, Step
from wuskern.profile.verdict import verdict

NOT_CONVERTED = "not converted, as the others are"


def profile(
    model: nn.Module,
    batch: Example,
    *,
    loss: Loss | None = None,
    seconds: float = 60.0,
    autocast: torch.dtype | None = None,
    filter_fn: FilterFn | None = None,
) -> Profile:
    """Measures, on this machine, what training ``model`` on ``batch`` takes densely, with skipped weights, with some rows or
    columns, and with a frozen prefix: seconds of a step, what forward keeps for backward, peak memory, FLOPs; and in which
    layers a skip saves what it saves. ``print`` what comes back: a verdict comes first.

    A step is forward and backward. The optimizer's is not in it: what that costs depends on the optimizer and not on the batch,
    and where weights have no gradient it has less to do, too. Gradients are compared with those of stock PyTorch before
    anything is timed; ways to train take turns, and a ratio is the median of the ratios of each round.

    The model is left as it was, bit for bit: converted or not, its plans, parameters, gradients, buffers, hooks, modes, and the
    random states; also where this raises. It is measured in training mode; a model that is in it already may have parts that
    are not. Hooks of parameters do not run, those of modules do. A model with converted layers is measured with these alone,
    dense but for what is compared, whatever plans a policy gave them. It takes the memory that training with AdamW does: a copy
    of the weights and one of the gradients beside both.

    Args:
        model: on a CPU, or on a GPU. Neither compiled nor wrapped by DDP; nothing of it frozen by a policy.
        batch: its input: a tensor, a sequence of positional inputs, or a mapping of keyword inputs, such as a
            ``BatchEncoding``.
        loss: a function of the model's output. None: the output's own ``loss``, as transformers' models give it with labels,
            else the mean square of its floating-point tensors; the result says which.
        seconds: how long this may take. What does not fit is left out, and said; some dense steps always run.
        autocast: the dtype of ``torch.autocast`` around forward and loss, such as ``torch.bfloat16``; None: no autocast.
        filter_fn: for :func:`wuskern.convert`, where no layer is converted yet.

    Raises:
        TypeError, ValueError: an argument that cannot work, a model none of whose parameters trains, a loss that is no number.
        Whatever the model raises.
    """
    _check(model, batch, seconds, autocast, filter_fn)
    began, load = time.perf_counter(), said_of_load()
    findings = survey(model, filter_fn)
    with untouched(model), quietly():
        if not model.training:
            model.train()
        race = Race(Step(model, batch, autocast, loss), began + seconds)
        was_converted = _make_dense(model)
        race.stock()
        if not was_converted and any(finding.obstacle is None for finding in findings):
            convert(model, filter_fn)
        layers = _layers(model)
        obstacle = _reasons(findings) if not layers else None
        race.run(layers)
        measured = race.measured()
        times, outside = layer_times(layers, race)
    saved = sum(layer.saved for layer in times) / measured[0].seconds if times else None
    skip = next((way for way in measured if way.name == "skip"), None)
    of_parameters = _weights_of(layers.values()) / max(1, sum(p.numel() for p in model.parameters()))
    return Profile(
        verdict=verdict(measured, outside, obstacle),
        model=type(model).__name__,
        loss=race.step.used_loss,
        share=_share(findings, layers),
        of_parameters=of_parameters,
        covered=tuple(layers),
        left_alone=_left_alone(findings, layers),
        ways=measured,
        layers=times,
        outside=outside,
        composed=saved,
        measured=1 - skip.of_dense if skip is not None else None,
        rounds=race.rounds,
        did_not_fit=tuple(race.did_not_fit),
        notes=(*race.notes, *load),
        environment=environment(model, race.step.device, autocast),
        took=time.perf_counter() - began,
    )


def _check(model: Any, batch: Any, seconds: Any, autocast: Any, filter_fn: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.DataParallel):
        raise ValueError("model: expected the one inside, got DataParallel around it")
    check_unfrozen(model)
    positive("seconds", seconds)
    if autocast is not None and autocast not in (torch.bfloat16, torch.float16):
        raise ValueError(f"autocast: expected torch.bfloat16, torch.float16 or None, got {autocast!r}")
    try:
        arguments(batch)
    except TypeError as error:
        raise TypeError(str(error).replace("example:", "batch:", 1)) from None
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: expected a function of (module, name), got {filter_fn!r}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model: expected a parameter that trains, got none")


def _make_dense(model: nn.Module) -> bool:
    """Whether the model has converted layers; all are dense from then on."""
    found = [module for module in model.modules() if isinstance(module, Skippable)]
    for layer in found:
        layer.plan = DENSE
    return bool(found)


def _layers(model: nn.Module) -> dict[str, SkippableLayer]:
    """The converted layers with a product, by name; none where there are none."""
    found = {plain_name(model, path): m for path, m in model.named_modules() if isinstance(m, Skippable)}
    return {name: layer for name, layer in found.items() if layer.units.layer != "Embedding"}  # type: ignore[misc]


def _left_alone(findings: Findings, layers: dict[str, SkippableLayer]) -> tuple[LeftAlone, ...]:
    taken = set(layers.values())
    return tuple(
        LeftAlone(f.name, _kind(f.module), _weights_of([f.module]), f.obstacle or NOT_CONVERTED)
        for f in findings
        if f.module not in taken
    )


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _share(findings: Findings, layers: dict[str, SkippableLayer]) -> float:
    return _weights_of(layers.values()) / max(1, _weights_of([finding.module for finding in findings.asked]))


def _weights_of(modules: Any) -> int:
    """How many weights the matrices of these layers have together, each once."""
    own = {p for module in modules for p in module.parameters(recurse=False)}
    return sum(p.numel() for p in own if not isinstance(p, nn.UninitializedParameter) and p.ndim >= 2)


def _reasons(findings: Findings) -> str:
    reasons = "; ".join(dict.fromkeys(finding.obstacle for finding in findings if finding.obstacle))
    return f"no layer can be converted ({reasons or 'none has a weight matrix'})"
