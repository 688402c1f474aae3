"""The backward that ``wuskern doctor --explain`` is asked about."""

from dataclasses import dataclass

import torch

from wuskern.choices import TopColumns, TopK
from wuskern.kernels.problem import Problem
from wuskern.kinds import Conv2d


@dataclass(frozen=True)
class Question:
    """A layer's backward, and how the part of its weight is chosen that trains.

    Attributes:
        whole: the problem of its weight gradient, dy and x being whole. rows, columns: the choices, which leave something out;
            None: all.
    """

    whole: Problem
    rows: TopK | None
    columns: TopColumns | None = None

    @property
    def k_columns(self) -> int:
        """How many columns are chosen; all without a choice."""
        p = self.whole
        return p.channels if self.columns is None else self.columns.count(p.channels, p.groups)

    @property
    def gathers(self) -> bool:
        """Whether forward gathers the chosen columns."""
        p = self.whole
        weight = torch.empty(p.out, p.channels // p.groups, *p.kernel_size, device="meta")
        return self.columns is not None and (not p.is_conv2d or Conv2d(groups=p.groups).gathers_columns(weight))

    @property
    def wgrad(self) -> Problem:
        """The problem of the weight gradient of the columns that are kept, dy being whole."""
        return self.whole._replace(channels=self.k_columns) if self.gathers else self.whole

    @property
    def dgrad(self) -> Problem:
        """The problem of the input gradient."""
        return self.whole._replace(op="rowsparse_dgrad_conv2d" if self.whole.is_conv2d else "rowsparse_dgrad")

    @property
    def is_dense(self) -> bool:
        return self.rows is None and self.columns is None

    @property
    def of_both(self) -> bool:
        """Whether the input gradient, too, comes from the chosen rows alone."""
        return self.rows is not None and self.rows.scope == "both"

    @property
    def layer(self) -> str:
        """The layer in words."""
        p = self.whole
        if not p.is_conv2d:
            return f"Linear {p.out} x {p.channels}, {p.batch} tokens"
        kernel, image = ("x".join(map(str, sides)) for sides in (p.kernel_size, p.size))
        return f"Conv2d {p.channels} -> {p.out}, {kernel}, {p.batch} images of {image}"

    @property
    def choice(self) -> str:
        """The choices in words."""
        p, k, said = self.whole, self.k_columns, []
        if self.rows is not None:
            said.append(f"{p.k} of {p.out} rows ({p.k / p.out:.1%}) by {self.rows.score}, scope {self.rows.scope}")
        if self.columns is not None:
            said.append(f"{k} of {p.channels} columns ({k / p.channels:.1%}) by the {self.columns.score}")
        return "; ".join(said) or "dense: all of the weight is stock's own backward"

    @property
    def why_dx_is_dense(self) -> str:
        return "dense: columns leave it whole" if self.rows is None else "dense: scope is weight"
