"""What the sparse methods share: weights that are zero, from the start and through each step, by masks that change."""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from wuskern.common import states
from wuskern.common.arguments import whole
from wuskern.modules import SkippableLayer
from wuskern.policies.base import Policy, Wants
from wuskern.policies.sparse.distribution import sparsities
from wuskern.policies.sparse.patterns import Pattern, largest, remaining
from wuskern.policies.sparse.weights import Weights

DEFAULT_SPARSITY = 0.9


@dataclass(eq=False, kw_only=True)
class SparseTraining(Policy):
    """Keeps a share of the weights of each layer zero; a subclass says which ones come and go. At the start each layer keeps
    exactly as many weights as its sparsity says, at random, and the others are set to zero.

    Call ``before_step`` and ``after_step`` around each optimizer step and ``after_epoch`` after each epoch. ``attach``
    makes the zeros hold inside the optimizer: their gradients are set to zero before its step, and what it remembers of a
    pruned weight (a momentum, a moment) too. Without it zeros are put back after each step, while momenta gather. A layer
    that skips or is frozen, by whichever policy, keeps its mask and its values; it takes its turn as soon as it trains.

    The kernels are PyTorch's dense ones: masks save no time in training. What they would leave out is ``Saved.masked``. For
    inference: :func:`wuskern.policies.sparse.pack`. Several processes give the same seed, and choose alike.

    Args:
        model: a model with converted layers, whose weights are plain parameters of their own.
        epochs: how many the run has.
        sparsity: the share of zeros of all masked weights, from 0 and under 1; from Python also a mapping from the names of
            layers to theirs. None: 0.9, or what ``n:m`` makes it.
        distribution: "uniform", or "erk": layers with large dimensions are sparser (arXiv 1911.11134).
        pattern: "unstructured"; "block": aligned blocks of the matrix ``[out, in * kh * kw]``, by their sum of magnitudes;
            "2:4" ("2of4", where a colon means something else), or other numbers: of each 4 consecutive inputs of that matrix
            2 stay.
        block: weights on a side, with ``pattern="block"``.
        dense: names of converted layers, or of modules, without a mask. None: the last one in the order of ``named_modules``.
        seed: of a generator of its own.

    Attributes:
        masks: by layer, bool, True where a weight trains. sparsities: by layer. sparsity: of all masked layers together.
        layout: the pattern, which says what comes and goes as one unit.

    Raises:
        ValueError, TypeError: an argument out of its range, no layer left, a pattern that does not fit one, or a weight that
            is shared or computed from others. No weight has changed then.
    """

    decides: ClassVar[Collection[str]] = ("zeros",)
    needs: ClassVar[Collection[str]] = ("before_step", "after_step", "after_epoch", "attach")
    trial = "interval=1"

    epochs: int
    sparsity: float | Mapping[str, float] | None = None
    distribution: Literal["uniform", "erk"] = "uniform"
    pattern: str = "unstructured"
    block: int = 16
    dense: Collection[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("epochs", self.epochs)
        whole("seed", self.seed, 0)
        self.layout = Pattern.of(self.pattern, self.block)
        self.dense = self.names_or_last(self.dense)
        self.weights = Weights({name: self._layer(name) for name in self.all_but(self.dense)})
        self.sparsities = sparsities(self.weights, self._given_sparsity(), self.distribution)
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        self._zeros = sum(sizes[name] * share for name, share in self.sparsities.items()) / sum(sizes.values())
        self.sparsity = self._zeros
        self.generator = torch.Generator().manual_seed(self.seed)
        self.optimizers: list[Optimizer] = []
        self.epoch = self.steps = 0  # trained
        self.due: set[str] = set()  # layers whose masks are to change
        self.masks: dict[str, Tensor] = {}
        self._densities: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}  # until the first step: weights as they were before the random start
        self._remembers = False  # whether an optimizer may remember something of zeros

    def _begin(self) -> None:
        """Draws the masks and sets weights to zero: the last act of a constructor."""
        for name, weight in self.weights.items():
            self._before[name] = weight.detach().clone()
            training = largest(self._random(name), self._in_groups(name, self._first_sparsity(name)))
            self.masks[name] = self.layout.mask(training, weight)
        self.apply()

    def _layer(self, name: str) -> SkippableLayer:
        """The layer ``name``, if its weight can have a mask; else raises ``ValueError``."""
        layer = self.layers[name]
        weight = layer._parameters.get("weight")  # not the attribute, which a parametrization computes
        where = name or "the model itself"
        owners = sum(weight is p for module in self.model.modules() for p in module._parameters.values())
        if owners != 1 or type(weight) is not Parameter:
            raise ValueError(f"dense: expected {where} in it, whose weight is shared or no plain parameter of its own")
        if self.layout.m and layer.units.transposed:
            raise ValueError(f"dense: expected {where} in it, a {layer.units.layer}, whose inputs lie in no row for n:m")
        try:
            self.layout.check(weight)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return layer

    def _given_sparsity(self) -> float | Mapping[str, float]:
        n, m = self.layout.n, self.layout.m
        if not m:
            return DEFAULT_SPARSITY if self.sparsity is None else self.sparsity
        if self.sparsity is not None and self.sparsity != 1 - n / m:
            raise ValueError(f"sparsity: expected None, as {n}:{m} says it, got {self.sparsity!r}")
        if self.distribution != "uniform":
            raise ValueError(f"distribution: expected uniform with {n}:{m}, got {self.distribution!r}")
        return 1 - n / m

    # ---- for a subclass ---------------------------------------------------------------------------------------------

    def _first_sparsity(self, name: str) -> float:
        return self.sparsities[name]

    def _sparsities(self, name: str) -> Collection[float] | None:
        """The sparsities that a layer may have at some time; None: any."""
        return None

    @abstractmethod
    def _evolve(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The units to train and those of them that keep their values, both ``[groups, units]``, bool; None: not yet."""

    def _in_groups(self, name: str, sparsity: float) -> Tensor:
        """How many units of each group train at a sparsity: ``[groups]``, int64."""
        weight, n = self.weights[name], self.layout.n
        count = self.layout.count(weight)
        groups = count // self.layout.m if n else 1
        return torch.full((groups,), n or remaining(count, sparsity), device=weight.device)

    def _random(self, name: str) -> Tensor:
        """A random number from 0 to 1 for each unit, ``[groups, units]``."""
        weight = self.weights[name]
        drawn = torch.rand(self.layout.count(weight), generator=self.generator)
        return drawn.to(weight.device).reshape(-1, self.layout.m or len(drawn))

    def _without_smallest(self, name: str, count: int) -> Tensor:
        """The ``count`` units in training with the largest sums of magnitudes, as a mask ``[groups, units]``."""
        units = self.layout.units(self.masks[name])
        scores = self.layout.scores(self.weights[name]).masked_fill(~units, -1.0)
        return largest(scores.reshape(1, -1), torch.tensor([count], device=units.device)).view_as(units)

    # ---- through a step ---------------------------------------------------------------------------------------------

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"zeros": self.weights}

    def wants(self, name: str) -> Wants:
        return {"density": self.density(name)} if self.on and name in self.masks else {}

    def density(self, name: str) -> float:
        """The share of a layer's weights that its mask lets train."""
        if name not in self._densities:
            self._densities[name] = self.masks[name].float().mean(dtype=torch.float64).item()
        return self._densities[name]

    def on_epoch_end(self) -> None:
        """Counts an epoch."""
        self.epoch += 1

    def on_step_end(self) -> None:
        """Counts a step and puts zeros back."""
        self.steps += 1
        self._before = {}
        self._clear_weights()

    def observe(self) -> None:
        """Sets the gradients of zeros to zero, and what the optimizer remembers of them, if it is new or a state was loaded."""
        self._before = {}
        if self._remembers and self.on:
            for name, mask in self.masks.items():
                self._forget(name, mask)
            self._remembers = False
        for name, mask in self.masks.items() if self.on else ():
            weight = self.weights[name]
            grad = weight.grad
            if grad is not None and grad.is_sparse:
                grad._values().mul_(mask.index_select(0, grad._indices()[0]))
            elif grad is not None:
                grad.mul_(mask)

    def watch(self, optimizer: Optimizer) -> None:
        super().watch(optimizer)
        self.optimizers.append(optimizer)
        self._remembers = True

    def apply(self) -> None:
        """Sets weights to zero where the masks say so. Idempotent."""
        self.on = True
        self._densities = {}
        self._clear_weights()

    def release(self) -> None:
        """Turns the masks off; weights stay as they are, zeros among them."""
        self.on = False

    @torch.no_grad()
    def _clear_weights(self) -> None:
        """Sets weights to zero where the masks say so, but not in frozen layers, where a cache watches for every write."""
        for name, mask in self.masks.items() if self.on else ():
            if not self.whole.wants(name).get("frozen"):
                self.weights[name].mul_(mask)

    def _change(self) -> None:
        """Changes the masks of the layers that are due and train."""
        for name in sorted(self.due) if self.on else ():
            if not self.trains(name):
                continue
            masks = self._evolve(name)
            if masks is not None:
                self._replace(name, *masks)
                self.due.remove(name)

    @torch.no_grad()
    def _replace(self, name: str, units: Tensor, staying: Tensor) -> None:
        weight = self.weights[name]
        kept = self.layout.mask(staying, weight)
        self.masks[name] = self.layout.mask(units, weight)
        self._densities.pop(name, None)
        weight.mul_(kept)
        self._forget(name, kept)

    @torch.no_grad()
    def _forget(self, name: str, kept: Tensor) -> None:
        weight = self.weights[name]
        for optimizer in self.optimizers:
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(kept)

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and tensors, safe for ``torch.load(weights_only=True)``. Take it between optimizer steps."""
        return {
            "policy": type(self).__name__,
            "epoch": self.epoch,
            "steps": self.steps,
            "due": sorted(self.due),
            "masks": {name: mask.cpu().clone() for name, mask in self.masks.items()},
            "generator": self.generator.get_state(),
        }

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)
        states.count("epoch", state["epoch"])
        states.count("steps", state["steps"])
        states.items("due", state["due"])
        if not all(isinstance(name, str) and name in self.weights for name in state["due"]):
            states.refuse(f"due, names among {sorted(self.weights)}", states.said(state["due"]))
        states.names("masks", state["masks"], self.weights)
        for name, weight in self.weights.items():
            states.tensor(f"mask of {name!r}", state["masks"][name], weight.shape, torch.bool)
            self._check_mask(name, state["masks"][name])
        states.generator(state["generator"])

    def _check_mask(self, name: str, mask: Tensor) -> None:
        """Refuses a mask that is not one of whole units, or of as many as this policy trains."""
        units, sparsities = self.layout.units(mask), self._sparsities(name)
        if not torch.equal(self.layout.mask(units, mask), mask):
            states.refuse(f"a mask of {name!r} in blocks of {self.layout.block}", "one that has parts of them")
        wanted = [self._in_groups(name, sparsity).tolist() for sparsity in sparsities or ()]
        if sparsities is not None and units.sum(1).tolist() not in wanted:
            amounts = " or ".join(map(str, sorted({sum(counts) for counts in wanted})))
            states.refuse(f"a mask of {name!r} that trains {amounts} units, as many of each group", f"{int(units.sum())}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken, and sets weights to zero. Raises ``ValueError`` for what is no such state, and
        for that of another model or sparsity; nothing has changed then."""
        self.check_state(state)
        self._undo_start()
        self._remembers = bool(self.optimizers)
        self.epoch, self.steps, self.due = state["epoch"], state["steps"], set(state["due"])
        for name, weight in self.weights.items():
            self.masks[name] = torch.empty_like(weight, dtype=torch.bool).copy_(state["masks"][name])
        self.generator.set_state(state["generator"].cpu())
        self.apply()

    @torch.no_grad()
    def _undo_start(self) -> None:
        """Puts back what the random start set to zero, in weights that nobody has changed since: those of a model that was
        loaded before the policy was made."""
        for name, before in self._before.items():
            weight = self.weights[name]
            if torch.equal(weight, before * self.masks[name]):
                weight.copy_(before)
        self._before = {}
