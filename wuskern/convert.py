"""Turns the nn.Linear and nn.Conv2d layers of a model, transformers' Conv1D, and embeddings on request, into skippable ones; on
request also layers beside them into such as keep less for backward."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TypeVar

import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter, UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from wuskern import ops
from wuskern.choices import Parts
from wuskern.common.example import Example
from wuskern.layers import conv1d
from wuskern.layers.adapters import adapters_of
from wuskern.layers.embedding import SkippableEmbedding
from wuskern.memory import candidates, kept
from wuskern.memory.layers import Lean
from wuskern.modules import FilterFn, Skippable, SkippableConv2d, SkippableLinear, plain_name

Model = TypeVar("Model", bound=nn.Module)
VIEWS = ("plan", *Parts.__annotations__)  # what a converted layer has beside its stock twin
LEFT_OUT = "filter_fn left it out"
ADAPTER = "it is an adapter of peft's, which trains"
NOT_ASKED = "embeddings are converted on request: convert(model, embeddings=True)"

_log = logging.getLogger("wuskern")
_OF_TORCH: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SkippableLinear,
    nn.Conv2d: SkippableConv2d,
    nn.Embedding: SkippableEmbedding,
}
_NO_KERNEL = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear)
_NO_PRODUCT = (
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.RMSNorm,
    ParametrizationList,
)  # these may have matrices that they do not multiply by


@dataclass(frozen=True)
class Finding:
    """One layer with a weight matrix, or one that may keep less, and why it is left alone, if it is."""

    name: str
    module: nn.Module
    obstacle: str | None  # None: it is, or will be, converted
    saves: int | None = None  # bytes, of a layer that keeps less, on an example; negative where its bits come on top


class Findings(list[Finding]):
    """What :func:`survey` has found, a list.

    Attributes:
        functional: with an example, how often functions such as ``F.dropout`` were called outside of layers, by name: what they
            keep stays.
    """

    functional: dict[str, int] | None = None

    @property
    def share(self) -> float:
        """The share, from 0 to 1, of the weights in these layers that is, or will be, in converted ones; 0 without any.
        Embeddings that nobody asked for do not count."""
        covered = _weights([finding for finding in self if finding.obstacle is None])
        return covered / max(1, _weights(self.asked))

    @property
    def asked(self) -> list[Finding]:
        """All but embeddings that nobody asked for."""
        return [finding for finding in self if finding.obstacle != NOT_ASKED]


def _skippable() -> dict[type[nn.Module], type[nn.Module]]:
    """The skippable class for each stock class, and for Conv1D if transformers is imported."""
    of_transformers = conv1d.stock()
    return _OF_TORCH if of_transformers is None else _OF_TORCH | {of_transformers: conv1d.skippable(of_transformers)}


def survey(
    model: nn.Module,
    filter_fn: FilterFn | None = None,
    *,
    embeddings: bool = False,
    memory: bool = False,
    example: Example | None = None,
) -> Findings:
    """Every layer with a weight matrix, in the order of ``named_modules``, and why ``convert``, with the same arguments, leaves
    it alone, if it does; the list has a ``share``, of all their weights, that is converted.

    With ``memory=True`` also every layer that may keep less, and why it does not. With an ``example``, an input of the model,
    each of those ``saves`` bytes: how much less autograd keeps of a forward in the mode that the model is in, with the plans
    that its layers have now. An activation whose output the next layer keeps as well saves nothing before that layer skips. The
    list then has ``functional``. The model stays as it was.

    Raises:
        TypeError: ``example`` is none, or comes without ``memory=True``.
    """
    if example is not None and not memory:
        raise TypeError("example: expected it with memory=True alone, got one without")
    findings = Findings()
    stock, adapters = tuple(_skippable()), adapters_of(model)
    for path, module in model.named_modules():
        name = plain_name(model, path)
        if memory and candidates.is_candidate(module):
            findings.append(Finding(name, module, candidates.obstacle(module) or _choice(module, name, filter_fn)))
        elif module in adapters and not isinstance(module, Skippable):
            if isinstance(module, stock):
                findings.append(Finding(name, module, ADAPTER))
        elif isinstance(module, stock):
            asked = embeddings or not isinstance(module, nn.Embedding) or isinstance(module, Skippable)
            obstacle = _obstacle(module) or _choice(module, name, filter_fn) if asked else NOT_ASKED
            findings.append(Finding(name, module, obstacle))
        elif reason := _no_skip(module):
            findings.append(Finding(name, module, reason))
    return findings if example is None else _measured(model, findings, example)


def _measured(model: nn.Module, findings: Findings, example: Example) -> Findings:
    """The findings with what each layer that keeps less saves on an example."""
    layers = [f.module for f in findings if f.obstacle is None and candidates.is_candidate(f.module)]
    saved, calls = kept.savings(model, example, layers)
    measured = Findings(replace(f, saves=saved.get(f.module)) for f in findings)
    measured.functional = calls
    return measured


def _obstacle(module: nn.Module) -> str | None:
    """Why a layer of a stock class, or something derived from one, cannot skip; None where it can."""
    if isinstance(module, Skippable):
        return None
    skippable = _skippable()
    if is_parametrized(module):
        return "its weight is parametrized"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "it is lazy: run the model once before converting"
    if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "MultiheadAttention reads its weight and never calls it"
    if _is_quantised(module):
        return f"it is quantised: {type(module).__module__}.{type(module).__name__}"
    if type(module) in skippable and not isinstance(module._parameters.get("weight"), Parameter):
        return "its weight is computed from other parameters"
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return "its forward was replaced on the object"
    if type(module) not in skippable:
        return f"{type(module).__name__} is a subclass with a behaviour of its own"
    if shadowed := [name for name in VIEWS if name in module.__dict__]:
        return f"it has an attribute {shadowed[0]} of its own"
    if type(module.weight) is not Parameter:
        return f"its weight is a {type(module.weight).__name__}, a subclass of Tensor"
    if module.weight.dtype not in ops.DTYPES:
        return f"its weight is {module.weight.dtype}"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "its max_norm changes the weight in forward"
    return None


def _choice(module: nn.Module, name: str, filter_fn: FilterFn | None) -> str | None:
    taken = isinstance(module, Skippable | Lean) or filter_fn is None or filter_fn(module, name)
    return None if taken else LEFT_OUT


def _no_skip(module: nn.Module) -> str | None:
    """Why there is no skip for a module that multiplies by a weight in another way; None for a module that does not."""
    if isinstance(module, _NO_KERNEL):
        return f"there is no skipping {type(module).__name__}"
    if _is_quantised(module) and hasattr(module, "_packed_params") and hasattr(module, "weight"):
        return f"it is quantised: {type(module).__module__}.{type(module).__name__}"
    matrices = [name for name, p in module._parameters.items() if isinstance(p, Tensor) and p.ndim >= 2]
    if matrices and not isinstance(module, _NO_PRODUCT):
        return f"{type(module).__name__} computes with its own {', '.join(matrices)}"
    return None


def _is_quantised(module: nn.Module) -> bool:
    return any(cls.__module__.startswith("torch.ao.nn.") for cls in type(module).__mro__)


def convert(model: Model, filter_fn: FilterFn | None = None, *, embeddings: bool = False, memory: bool = False) -> Model:
    """Makes every ``nn.Linear``, ``nn.Conv2d`` and, of transformers, ``Conv1D`` of a model skippable, in place, and returns the
    model; with ``embeddings=True`` every ``nn.Embedding``, too. With ``memory=True`` the layers in between keep less for
    backward, with equal results: ``nn.ReLU``, ``nn.ReLU6``, ``nn.LeakyReLU`` and ``nn.Dropout`` a bit for each element,
    ``nn.BatchNorm`` in evaluation mode nothing for a weight that does not train. What a skipped layer does not keep is free
    then, where PyTorch's activation in front would have kept it. Functions, such as ``F.relu`` and ``F.dropout``, stay as they
    are.

    Only the class of a layer changes: the module objects, their Parameters, names, hooks, ties and state_dict stay, the
    root itself included. Results do not change until a flag is set. Exact types only: subclasses, whose owner may read
    their weight without calling them, are left alone, as are parametrized, lazy and quantised layers, weights that
    are no plain Parameter, and what peft has added to a model: a skip there would stop all that trains. The logger "wuskern"
    gets each layer left alone with its reason, and the share of the weights that converted layers hold (level INFO; one line
    of level WARNING where layers left alone hold more); :func:`survey` gives both. Calling it again converts what has become
    convertible, and nothing else.

    Tools that look layers up by their exact type pass converted ones over: dynamic quantisation and ``prepare_qat`` (there is
    a warning then), ``fuse_modules``, thop, initialisers that ask ``type(module) is nn.Linear``. Call :func:`revert` first.

    Args:
        model: any module.
        filter_fn: ``filter_fn(module, name) -> bool``, asked once about each layer that could be converted, by its first
            name, without what ``torch.compile`` and DDP put before it; False leaves it alone. It only narrows the choice.
        embeddings: whether embeddings are converted, too. They have ``skip`` and ``rows``, and policies pass them over.
        memory: whether layers without a product keep less. Nothing else of them changes.

    Raises:
        TypeError: ``model`` is no module, or ``filter_fn`` cannot be called.
        ValueError: nothing to convert, with the reasons. The model is then unchanged, as it is where ``filter_fn`` raises.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: expected a function of (module, name), got {filter_fn!r}")
    findings = survey(model, filter_fn, embeddings=embeddings, memory=memory)
    left_alone = [f"{f.name or 'the model itself'}: {f.obstacle}" for f in findings if f.obstacle]
    if len(left_alone) == len(findings):
        reasons = "; ".join(left_alone) or "it has no layer with a weight matrix"
        raise ValueError(
            f"model: expected an nn.Linear, nn.Conv2d or transformers' Conv1D to convert, got {type(model).__name__}: {reasons}"
        )
    skippable = _skippable()
    for finding in findings:
        if finding.obstacle is None:
            _convert(finding.module, skippable)
    _report(findings, left_alone, memory)
    return model


def _convert(module: nn.Module, skippable: dict[type[nn.Module], type[nn.Module]]) -> None:
    if type(module) in skippable:
        module.__class__ = skippable[type(module)]
    elif not isinstance(module, Skippable):
        candidates.make_lean(module)


def _report(findings: Findings, left_alone: list[str], memory: bool) -> None:
    """Says in the log what was converted, and what was left alone and why."""
    for line in left_alone:
        _log.info("left alone: %s", line)
    products = [f for f in findings.asked if not (memory and candidates.is_candidate(f.module))]
    converted = sum(f.obstacle is None for f in products)
    _log.info("converted: %d of %d layers, with %.0f %% of the weights", converted, len(products), 100 * findings.share)
    if memory:
        lean = Counter(f.module.stock.__name__ for f in findings if isinstance(f.module, Lean))
        _log.info("keep less: %s", ", ".join(f"{n} {kind}" for kind, n in lean.items()) or "no layer")
        _log.info("calls of functions (F.relu, F.dropout, F.batch_norm) are not touched: survey(..., example=...) counts them")
    _warn_of_most_left_alone(products)


def _warn_of_most_left_alone(findings: list[Finding]) -> None:
    """Says in the log if most of the weights lie in layers that cannot skip: one would believe that something is saved."""
    left_alone = [finding for finding in findings if finding.obstacle not in (None, LEFT_OUT, NOT_ASKED, ADAPTER)]
    alone, converted = _weights(left_alone), _weights([finding for finding in findings if finding.obstacle is None])
    if alone > converted:
        kinds = ", ".join(dict.fromkeys(type(finding.module).__name__ for finding in left_alone))
        _log.warning("left alone: %.0f %% of the weights, in layers of type %s", 100 * alone / (alone + converted), kinds)


def _weights(findings: list[Finding]) -> int:
    """How many weights the matrices of these layers have together."""
    parameters = {p for finding in findings for p in finding.module.parameters(recurse=False)}
    matrices = [p for p in parameters if not isinstance(p, UninitializedParameter) and p.ndim >= 2]
    return sum(matrix.numel() for matrix in matrices)


def revert(model: Model) -> Model:
    """Undoes :func:`convert`: every skippable layer, and every one that keeps less, is a stock layer again, the same object.
    Returns the model.

    Tools that go by exact type, such as quantisation, know its layers then.

    Layers parametrized since keep their parametrization. Subclasses of the skippable layers are left alone.
    """
    for module in model.modules():
        candidates.make_stock(module)
        stock = _stock_class(type(module))
        if stock is not None and isinstance(module, Skippable):
            module.forget_plan()
            module.__class__ = stock  # type: ignore[assignment]
    return model


def _stock_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The stock twin of a skippable class, also of the subclass that ``register_parametrization`` made of it; else None."""
    base, stock_of = cls.__bases__[0], {skippable: stock for stock, skippable in _skippable().items()}
    if base in stock_of and cls.__name__ == f"Parametrized{base.__name__}":
        namespace = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        return type(f"Parametrized{stock_of[base].__name__}", (stock_of[base],), namespace)
    return stock_of.get(cls)
