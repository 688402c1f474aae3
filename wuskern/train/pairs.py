"""Which two methods can be combined, and why the others cannot: each pair is tried on a small network.

``table()`` is that of docs/methods.
"""

import functools
import itertools
import re
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.optim import SGD, Optimizer

from wuskern.convert import convert
from wuskern.policies.base import CLAIMS
from wuskern.train.methods import PARTS, Built, Given, build, parse

SIMPLIFYING = "mesimp:simplify=true"  # which claims more than mesimp by itself
NAMES = (*PARTS, SIMPLIFYING)
EPOCHS, SAMPLES, CLASSES = 3, 12, 4
IMAGES = (3, 6, 6)
SHORT = {"frozen": "freezing", "twice": "itself"}  # reasons that have another name in the table


@dataclass(frozen=True)
class Pair:
    """Two parts of a method. ``refusal``: why they cannot be combined; None if they can."""

    first: str
    second: str
    refusal: str | None = None

    @property
    def method(self) -> str:
        """The method of both, as ``--policy`` takes it."""
        return f"{trial(self.first)}+{trial(self.second)}"

    @property
    def reason(self) -> str | None:
        """The one of ``CLAIMS`` that both have, or a word of what ``wuskern.train.methods`` says; None without a refusal."""
        if self.refusal is None:
            return None
        claim = next((kind for kind, text in CLAIMS.items() if text in self.refusal), None)
        match = re.search("alone|twice|data", self.refusal)
        return claim or (match[0] if match else self.refusal)


def trial(name: str) -> str:
    """The part ``name`` with arguments that make it act within three epochs."""
    arguments = PARTS[name.split(":")[0]].trial
    return f"{name}:{arguments}" if arguments else name


def network() -> nn.Module:
    """A small converted model: two convolutions, a batch norm, and three linear layers."""
    parts = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    return convert(nn.Sequential(*parts, nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)))


def built(pair: Pair, model: nn.Module, optimizer: Optimizer) -> Built:
    """The pair's method on ``model``, a :func:`network`. Raises ``ValueError`` where the two cannot be combined."""
    example = torch.zeros(2, *IMAGES)
    return build(parse(pair.method)[0], Given(model, optimizer, example, SAMPLES, seed=0), EPOCHS)


@functools.cache
def pairs() -> tuple[Pair, ...]:
    """All pairs of ``NAMES``, in their order, each tried."""
    return tuple(_tried(Pair(*names)) for names in itertools.combinations(NAMES, 2))


def _tried(pair: Pair) -> Pair:
    model = network()
    try:
        built(pair, model, SGD(model.parameters(), lr=0.1))
    except ValueError as error:
        return Pair(pair.first, pair.second, str(error))
    return pair


# ---- the table ------------------------------------------------------------------------------------------------------


def table() -> str:
    """The table in Markdown. Methods that can be combined with the same others share a row, and a column of its number. A cell
    is "+" where two can be combined, or says what only one of them can decide."""
    reasons = {frozenset((p.first, p.second)): p.reason for p in pairs()}
    groups = _groups(reasons)
    lines = [
        f"| | {' | '.join(str(n) for n in range(1, len(groups) + 1))} |",
        f"| --- |{' --- |' * len(groups)}",
    ]
    for number, group in enumerate(groups, 1):
        cells = (_cell(reasons, group, column) for column in groups)
        lines.append(f"| {number}: {', '.join(f'`{name}`' for name in group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(reasons: dict[frozenset[str], str | None], row: list[str], column: list[str]) -> str:
    cell = {reasons[frozenset((a, b))] for a in row for b in column if a != b}
    return "/".join(sorted("+" if reason is None else SHORT.get(reason, reason) for reason in cell))


def _groups(reasons: dict[frozenset[str], str | None]) -> list[list[str]]:
    groups: list[list[str]] = []
    for name in NAMES:
        for group in groups:
            others = set(NAMES) - {name, *group}
            if all(reasons[frozenset((name, other))] == reasons[frozenset((group[0], other))] for other in others):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups
