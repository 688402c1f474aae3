"""What a simplification did, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LayerRows:
    """The numbers of rows of one layer. ``reasons``: why dead rows stayed, each with how many."""

    before: int
    after: int
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What became of a model. ``str(report)`` is a table.

    Attributes:
        layers: every ``nn.Linear`` and ``nn.Conv2d`` by name.
        parameters_before, parameters_after: numbers in the model's parameters, shared ones counted once.
        kept: of each layer that lost rows, the indices of those that stayed: int64, ascending, on the CPU.
    """

    layers: Mapping[str, LayerRows]
    parameters_before: int
    parameters_after: int
    kept: Mapping[str, Tensor]

    def __str__(self) -> str:
        table = [("layer", "rows", "left", "dead rows that stay")]
        for name, rows in self.layers.items():
            reasons = "; ".join(f"{count}: {reason}" for reason, count in rows.reasons.items())
            table.append((name or "the model itself", str(rows.before), str(rows.after), reasons))
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        lines = ["  ".join((a.ljust(widths[0]), b.rjust(widths[1]), c.rjust(widths[2]), d)).rstrip() for a, b, c, d in table]
        share = self.parameters_after / max(1, self.parameters_before)
        return "\n".join((*lines, f"parameters: {self.parameters_before:,} -> {self.parameters_after:,} ({share:.0%})"))
