"""What a profile has found: numbers, how they print, and how they are written to a file."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from wuskern.profile.text import text_of

FORMAT = 1


@dataclass(frozen=True)
class LeftAlone:
    """A layer with a weight matrix that stays a stock layer: its name, class, number of weights, and why."""

    name: str
    kind: str
    weights: int
    reason: str


@dataclass(frozen=True)
class Measured:
    """One way to train, measured.

    Attributes:
        name: such as "rows 5%". methods: policies that train so, as ``wuskern train --policy`` calls them.
        seconds: of a step's forward and backward, the median. low, high: the quartiles. of_dense: its time as a share of
            dense's, the median over rounds.
        kept: bytes that forward keeps for backward, without parameters. peak: the most bytes that torch's allocator had handed
            out at once above what there was before, gradients included.
        flops: of the step, as torch's FlopCounterMode counts them, which takes the backward of a stock convolution in groups
            for more than it is. left_dense: how many layers cannot train so and were dense.
    """

    name: str
    methods: str
    seconds: float
    low: float
    high: float
    of_dense: float
    kept: int
    peak: int
    flops: int
    left_dense: int = 0


@dataclass(frozen=True)
class LayerTimes:
    """The seconds that one layer takes of a step, medians.

    Attributes:
        name: of the layer. shape: kind and size, which equal layers share. weights: how many. forward: seconds.
        dgrad: of the backward in which the weight is skipped: input and bias gradient. wgrad: what the weight's gradient adds
            to that. saved: by a skip, forward and backward together.
    """

    name: str
    shape: str
    weights: int
    forward: float
    dgrad: float
    wgrad: float
    saved: float


@dataclass(frozen=True)
class Profile:
    """What :func:`wuskern.profile` returns. ``print(profile)`` gives a table, :meth:`to_json` all of it.

    Attributes:
        verdict: one line: what to use, or "do not bother". model: the class. loss: which one was used, in words.
        share: of the weights in layers with a weight matrix, embeddings apart, that converted layers have. of_parameters: of
            all parameters. covered: the names of these layers. left_alone: the others.
        ways: what was measured, dense first. layers: seconds by layer; empty where there was no time for them.
        outside: seconds of a dense step outside of these layers.
        composed: the share of a dense step that a skip saves, put together from ``layers``. measured: the same of whole steps.
        rounds: how often each way was timed. did_not_fit: into the time. notes: what else there is to say. environment: the
            machine, versions, threads. took: seconds of the whole profile.
    """

    verdict: str
    model: str
    loss: str
    share: float
    of_parameters: float
    covered: tuple[str, ...]
    left_alone: tuple[LeftAlone, ...]
    ways: tuple[Measured, ...]
    layers: tuple[LayerTimes, ...]
    outside: float | None
    composed: float | None
    measured: float | None
    rounds: int
    did_not_fit: tuple[str, ...]
    notes: tuple[str, ...]
    environment: dict[str, Any] = field(repr=False)
    took: float = 0.0

    def __getitem__(self, name: str) -> Measured:
        """The way of that name. Raises ``KeyError`` for one that was not measured."""
        found = {way.name: way for way in self.ways}
        if name not in found:
            raise KeyError(f"name: expected one of {', '.join(found)}, got {name!r}")
        return found[name]

    def __str__(self) -> str:
        return text_of(self)

    __repr__ = __str__

    def to_json(self) -> str:
        """All of it, as JSON; seconds and bytes are not rounded."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
