"""The plans of all layers of a model: set together, for good or for the length of a ``with`` block."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch.nn as nn

from wuskern.choices import ColumnChoice, Parts, Plan, RowChoice, Tokens
from wuskern.common.overlap import Overlapping
from wuskern.modules import FilterFn, Skippable, SkippableLayer, skippable_layers, weight_owners

_log = logging.getLogger("wuskern")


def set_plan(model: nn.Module, *, filter_fn: FilterFn | None = None, **parts: Any) -> None:
    """Sets ``parts`` of the plan (``skip``, ``rows``, ``columns``, ``tokens``) of every converted layer, or of those that
    ``filter_fn`` takes.

    Args:
        filter_fn: ``filter_fn(module, name) -> bool``. Where embeddings are converted, too, it leaves them out of
            a part that they cannot have.

    Raises:
        ValueError, TypeError: the model has no converted layer, ``filter_fn`` takes none, or a part does not fit one of them,
            by name. No layer is then changed.

    Where a skip leaves no parameter of the model to train, a warning goes to the logger "wuskern".
    """
    if not parts:
        raise TypeError(f"parts: expected some of {', '.join(Parts.__annotations__)}, got none")
    layers = skippable_layers(model)
    if filter_fn is not None:
        layers = {name: layer for name, layer in layers.items() if filter_fn(layer, name)}
        if not layers:
            raise ValueError("filter_fn: expected it to take at least one converted layer, got none")
    plans = {name: layer.plan.replace(**parts) for name, layer in layers.items()}
    for name, plan in plans.items():
        check_plan(layers[name], plan, f"{name or 'the model itself'}: ")
    for name, plan in plans.items():
        layers[name].plan = plan
    if parts.get("skip"):
        warn_of_nothing_left(model)


def warn_of_nothing_left(model: nn.Module) -> None:
    """Warns in the log where skips leave no parameter of the model to train."""
    owners = weight_owners(model, skippable_layers(model))
    skipped = {parameter for parameter, layers in owners if all(layer.skip for layer in layers)}
    if not any(parameter.requires_grad and parameter not in skipped for parameter in model.parameters()):
        _log.warning(
            "skip: expected a bias or another parameter to be left to train, got none: backward works only for an input that "
            "requires a gradient"
        )


def set_skip(model: nn.Module, skip: bool, *, filter_fn: FilterFn | None = None) -> None:
    """Sets ``skip`` of every converted layer, as :func:`set_plan` does."""
    set_plan(model, filter_fn=filter_fn, skip=skip)


def set_rows(model: nn.Module, rows: RowChoice | None, *, filter_fn: FilterFn | None = None) -> None:
    """Sets ``rows`` of every converted layer, as :func:`set_plan` does; None: all rows."""
    set_plan(model, filter_fn=filter_fn, rows=rows)


def set_columns(model: nn.Module, columns: ColumnChoice | None, *, filter_fn: FilterFn | None = None) -> None:
    """Sets ``columns`` of every converted layer, as :func:`set_plan`; None: all columns."""
    set_plan(model, filter_fn=filter_fn, columns=columns)


def set_tokens(model: nn.Module, tokens: Tokens | None, *, filter_fn: FilterFn | None = None) -> None:
    """Sets ``tokens`` of every converted layer, as :func:`set_plan` does; None: all tokens."""
    set_plan(model, filter_fn=filter_fn, tokens=tokens)


_skips: "weakref.WeakKeyDictionary[SkippableLayer, Overlapping[bool]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@contextlib.contextmanager
def skipping(model: nn.Module, skip: bool = True) -> Iterator[None]:
    """A ``with`` block with ``skip`` set in every converted layer, which then gets back the flag it had. Blocks of several
    threads or tasks may overlap: the one entered last counts until it is left."""
    layers = skippable_layers(model)
    for name, layer in layers.items():
        check_plan(layer, layer.plan.replace(skip=skip), f"{name or 'the model itself'}: ")
    with contextlib.ExitStack() as blocks:
        for layer in layers.values():
            blocks.enter_context(_skip_of(layer).block(skip))
        yield


def _skip_of(layer: SkippableLayer) -> Overlapping[bool]:
    reference = weakref.ref(layer)

    def write(skip: bool) -> None:
        if isinstance(alive := reference(), Skippable):  # not reverted since
            alive.skip = skip

    with _lock:
        return _skips.setdefault(layer, Overlapping(lambda: bool(getattr(reference(), "skip", False)), write))


def check_plan(layer: SkippableLayer, plan: Plan, where: str = "") -> None:
    """Raises ``ValueError`` or ``TypeError``, its text behind ``where``, if ``layer`` cannot have ``plan``."""
    try:
        plan.check(layer.units)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{where}{error}") from error
