"""A product of the chosen rows, as far as the choice of its way depends on it."""

import math
from dataclasses import dataclass

OPS = ("rowsparse_wgrad", "rowsparse_dgrad", "rowsparse_wgrad_conv2d", "rowsparse_dgrad_conv2d")
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Product:
    """A product of k of dy's rows. ``features``: those of x of a Linear; of a Conv2d, channels of a group times taps."""

    op: str
    dtype: str
    tokens: int  # of a Conv2d: pixels of dy, of all images
    features: int
    out: int  # rows that dy holds: k where they have been gathered
    k: int
    inputs: int  # elements of x or dx
    taps: int = 1
    groups: int = 1
    planes: bool = False  # whether the elements of a row of dy lie side by side (NCHW), and not those of a token
    tf32: bool = False  # whether float32 may be multiplied so

    @property
    def is_wgrad(self) -> bool:
        return "wgrad" in self.op

    @property
    def is_conv2d(self) -> bool:
        return self.op.endswith("conv2d")

    @property
    def operations(self) -> int:
        return 2 * self.tokens * self.k * self.features

    @property
    def itemsize(self) -> int:
        return BYTES[self.dtype]

    @property
    def compact_bytes(self) -> int:
        """Of the chosen rows of dy."""
        return self.tokens * self.k * self.itemsize

    @property
    def other_bytes(self) -> int:
        """Of x or dx, and of the chosen rows of the weight or of its gradient."""
        return (self.inputs + self.k * self.features) * self.itemsize

    @property
    def rate(self) -> str:
        """Its key in ``gpus.Rates.flops_per_second``."""
        return "tf32" if self.tf32 and self.dtype == "float32" else self.dtype

    @property
    def kind(self) -> tuple[str, str, bool, bool]:
        """What is measured is compared with problems of the same kind."""
        return self.op, "half" if self.itemsize == 2 else self.rate, self.planes, self.out == self.k


def distance(a: Product, b: Product) -> float:
    """Of two problems of one kind, in the logarithms of their sides."""
    sides = [(p.tokens, p.features, p.k, p.out, p.taps, p.groups, p.inputs) for p in (a, b)]
    return math.dist(*([math.log2(max(1, side)) for side in some] for some in sides))
