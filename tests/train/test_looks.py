"""Methods can be told apart, and look the same in every picture."""

import itertools
import random

import pytest

from wuskern.train.looks import COLOURS, LOOKS, looks
from wuskern.train.methods import DENSE, PARTS

VARIANTS = [f"{part}:k={k}" for part in ("meprop", "crs", "mest") for k in range(5)]
COMPOSED = ["wus+freeze:share=.9", "sieve+freeze:start=2", "mest+sieve", "wus+lr:factor=.5+sieve:keep=.7"]


def luminance(colour):
    """Relative, as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_two_of_many_methods_have_the_same_colour_and_marker(seed):
    methods = [DENSE, *PARTS, *VARIANTS, *COMPOSED]
    random.Random(seed).shuffle(methods)
    for many in (2, 11, 35, len(methods)):
        assert len({(look.colour, look.marker) for look in looks(methods[:many]).values()}) == many
    assert len(set(looks(f"meprop:k={k}" for k in range(len(LOOKS))).values())) == len(LOOKS)
    assert len(looks(f"meprop:k={k}" for k in range(len(LOOKS) + 9))) == len(LOOKS) + 9


def test_neighbours_differ_in_both():
    for one, other in itertools.pairwise(LOOKS):
        assert one.colour != other.colour
        assert one.marker != other.marker


def test_every_colour_stands_out_from_white():
    assert min(1.05 / (luminance(colour) + 0.05) for colour in COLOURS) > 2


@pytest.mark.parametrize("method", [DENSE, "wus", "wus:warmup=3", "wus+lr:factor=.5", "sieve:keep=.7", COMPOSED[0]])
def test_a_method_looks_the_same_beside_any_others(method):
    found = {
        looks([*before, method, *after])[method]
        for before, after in itertools.permutations([[], [DENSE], VARIANTS[:3], ["freeze:start=1", "rigl"], COMPOSED[1:2]], 2)
    }
    assert len(found) == 1


def test_numbers_change_no_look():
    assert looks(["freeze:start=2"])["freeze:start=2"] == looks(["freeze:start=4:end=9"])["freeze:start=4:end=9"]
    twins = [f"crs,crs:ratio={ratio}:pick=top".split(",") for ratio in (".3", "0.25")]
    assert len({looks(methods)[methods[1]] for methods in twins}) == 1
