"""The plans of all layers of a model: set together, for good or for the length of a ``with`` block."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch.nn as nn

from wuskern.choices import ColumnChoice, Parts, Plan, RowChoice, Tokens
from wuskern.common.overlap import Overlapping
from wuskern.modules import FilterFn, Skippable, SkippableLayer, skippable_layers, weight_owners

FEW = 8  # names of layers in an error
_log = logging.getLogger("wuskern")


def set_plan(
    model: nn.Module, *, filter_fn: FilterFn | None = None, names: Collection[str] | None = None, **parts: Any
) -> None:
    """Sets ``parts`` of the plan (``skip``, ``rows``, ``columns``, ``tokens``) of every converted layer, or of those that
    ``names`` or ``filter_fn`` takes.

    Args:
        filter_fn: ``filter_fn(module, name) -> bool``. Where embeddings are converted, too, it leaves them out of
            a part that they cannot have.
        names: of layers, or of modules, which stand for all layers in them: ``["encoder.0", "head"]``. A "*" stands for any
            text: ``["*.proj"]``.

    Raises:
        ValueError, TypeError: the model has no converted layer, ``filter_fn`` takes none, a name is of none, or a part does not
            fit one of them, by name; both ``filter_fn`` and ``names``. No layer is then changed.

    Where a skip leaves no parameter of the model to train, a warning goes to the logger "wuskern".
    """
    if not parts:
        raise TypeError(f"parts: expected some of {', '.join(Parts.__annotations__)}, got none")
    layers = _taken(model, filter_fn, names)
    plans = {name: layer.plan.replace(**parts) for name, layer in layers.items()}
    for name, plan in plans.items():
        check_plan(layers[name], plan, f"{name or 'the model itself'}: ")
    for name, plan in plans.items():
        layers[name].plan = plan
    if parts.get("skip"):
        warn_of_nothing_left(model)


def _taken(model: nn.Module, filter_fn: FilterFn | None, names: Collection[str] | None) -> dict[str, SkippableLayer]:
    """The converted layers that one of the two takes; all without either."""
    layers = skippable_layers(model)
    if filter_fn is not None and names is not None:
        raise TypeError("filter_fn, names: expected one of the two, got both")
    if names is not None:
        layers = {name: layers[name] for name in layers_of("names", names, layers)}
        if not layers:
            raise ValueError("names: expected at least one, got none")
    if filter_fn is not None:
        if not callable(filter_fn):
            raise TypeError(f"filter_fn: expected a function of (module, name), or names=[...], got {filter_fn!r}")
        layers = {name: layer for name, layer in layers.items() if filter_fn(layer, name)}
        if not layers:
            raise ValueError("filter_fn: expected it to take at least one converted layer, got none")
    return layers


def layers_of(argument: str, names: Collection[str], layers: Mapping[str, SkippableLayer]) -> tuple[str, ...]:
    """The names of the layers that are named, or that lie in a module that is, in the order of ``layers``. A name with a "*",
    such as "*.proj", stands for all that it fits.

    Args:
        argument: what errors call it.

    Raises:
        TypeError: no list of names. ValueError: a name of no converted layer, and of no module with one.
    """
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}: expected a list of names of layers, got {names!r}")
    taken: set[str] = set()
    for name in names:
        found = {layer for layer in layers if _fits(layer, name)}
        if not found:
            some = ", ".join([*layers][:FEW]) + ", ..." * (len(layers) > FEW)
            raise ValueError(f"{argument}: expected names of converted layers ({some}) or of modules with some, got {name!r}")
        taken |= found
    return tuple(name for name in layers if name in taken)


def _fits(layer: str, name: str) -> bool:
    if "*" in name:
        return fnmatchcase(layer, name) or fnmatchcase(layer, f"{name}.*")
    return layer == name or layer.startswith(f"{name}.")


def warn_of_nothing_left(model: nn.Module) -> None:
    """Warns in the log where skips leave no parameter of the model to train."""
    owners = weight_owners(model, skippable_layers(model))
    skipped = {parameter for parameter, layers in owners if all(layer.skip for layer in layers)}
    if not any(parameter.requires_grad and parameter not in skipped for parameter in model.parameters()):
        _log.warning(
            "skip: expected a bias or another parameter to be left to train, got none: backward works only for an input that "
            "requires a gradient"
        )


def set_skip(model: nn.Module, skip: bool, *, filter_fn: FilterFn | None = None, names: Collection[str] | None = None) -> None:
    """Sets ``skip`` of every converted layer, as :func:`set_plan` does."""
    set_plan(model, filter_fn=filter_fn, names=names, skip=skip)


def set_rows(
    model: nn.Module, rows: RowChoice | None, *, filter_fn: FilterFn | None = None, names: Collection[str] | None = None
) -> None:
    """Sets ``rows`` of every converted layer, as :func:`set_plan` does; None: all rows."""
    set_plan(model, filter_fn=filter_fn, names=names, rows=rows)


def set_columns(
    model: nn.Module, columns: ColumnChoice | None, *, filter_fn: FilterFn | None = None, names: Collection[str] | None = None
) -> None:
    """Sets ``columns`` of every converted layer, as :func:`set_plan`; None: all columns."""
    set_plan(model, filter_fn=filter_fn, names=names, columns=columns)


def set_tokens(
    model: nn.Module, tokens: Tokens | None, *, filter_fn: FilterFn | None = None, names: Collection[str] | None = None
) -> None:
    """Sets ``tokens`` of every converted layer, as :func:`set_plan` does; None: all tokens."""
    set_plan(model, filter_fn=filter_fn, names=names, tokens=tokens)


_skips: "weakref.WeakKeyDictionary[SkippableLayer, Overlapping[bool]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@contextlib.contextmanager
def skipping(
    model: nn.Module, skip: bool = True, *, filter_fn: FilterFn | None = None, names: Collection[str] | None = None
) -> Iterator[None]:
    """A ``with`` block with ``skip`` set in every converted layer, or in those that ``filter_fn`` or ``names`` takes, as for
    :func:`set_plan`; each then gets back the flag it had. Blocks of several threads or tasks may overlap: the one entered last
    counts until it is left."""
    layers = _taken(model, filter_fn, names)
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
