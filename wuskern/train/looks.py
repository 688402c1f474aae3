"""How a method looks in every picture: a colour, a marker and a line, told apart by colour-blind readers too."""

import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from wuskern.policies import METHODS
from wuskern.train.controls import Frozen
from wuskern.train.methods import DENSE

# Okabe and Ito's colours, without the yellow, which is pale on white.
COLOURS = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
MARKERS = "osD^vPX*<>dp"
LINES = ("-", (0, (5, 2)), (0, (7, 2, 1, 2)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
Line = str | tuple[int, tuple[int, ...]]


class Look(NamedTuple):
    colour: str
    marker: str
    line: Line


# Neighbours differ in colour and in marker; all differ in the two together.
LOOKS = [Look(COLOURS[i % 7], MARKERS[(i // 7 + i % 7) % 12], LINES[i // 7 % 5]) for i in range(7 * 12)]
HOMES = {name: number for number, name in enumerate((DENSE, Frozen.name, *METHODS))}  # a new method comes last
OTHERS = len(LOOKS) // 2  # from here on are the looks of labels that are no part's name


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Each method's look; no two of the first 84 have the same one.

    The first of those that differ in arguments alone has the look of its part. Others, and those of several parts, have one
    that their label chooses, its numbers apart, or the next free one. So a method looks the same beside other methods, too.
    """
    methods = list(dict.fromkeys(methods))
    numbers: dict[str, int] = {}
    for method in methods:
        home = HOMES.get(re.sub(r":[^+]*", "", method))
        if home is not None and home not in numbers.values():
            numbers[method] = home
    taken = set(numbers.values())
    for method in methods:
        if method not in numbers:
            if len(taken) == len(LOOKS):
                taken = set()
            numbers[method] = _free(method, taken)
            taken.add(numbers[method])
    return {method: LOOKS[numbers[method]] for method in methods}


def _free(method: str, taken: set[int]) -> int:
    """The look that the label chooses among those of no part, or the first free one behind it."""
    words = re.sub(r"[\d./]+", "", method)
    first = OTHERS + zlib.crc32(words.encode()) % (len(LOOKS) - OTHERS)
    return next(n % len(LOOKS) for n in range(first, first + len(LOOKS)) if n % len(LOOKS) not in taken)
