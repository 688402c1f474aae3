"""The backward that ``wuskern doctor --explain`` is asked about."""

from dataclasses import dataclass

from wuskern.choices import TopK
from wuskern.kernels.problem import Problem


@dataclass(frozen=True)
class Question:
    """A layer's backward: the problem of its weight gradient, dy being whole, and how its rows are chosen."""

    wgrad: Problem
    choice: TopK

    @property
    def dgrad(self) -> Problem:
        """The problem of the input gradient."""
        return self.wgrad._replace(op="rowsparse_dgrad_conv2d" if self.wgrad.is_conv2d else "rowsparse_dgrad")

    @property
    def is_dense(self) -> bool:
        return self.wgrad.k == self.wgrad.out

    @property
    def layer(self) -> str:
        """The layer in words."""
        p = self.wgrad
        if not p.is_conv2d:
            return f"Linear {p.out} x {p.channels}, {p.batch} tokens"
        kernel, image = ("x".join(map(str, sides)) for sides in (p.kernel_size, p.size))
        return f"Conv2d {p.channels} -> {p.out}, {kernel}, {p.batch} images of {image}"

    @property
    def rows(self) -> str:
        """The choice of the rows in words."""
        if self.is_dense:
            return "dense: all rows are stock's own backward"
        k, out = self.wgrad.k, self.wgrad.out
        return f"{k} of {out} rows ({k / out:.1%}) by {self.choice.score}, scope {self.choice.scope}"
