"""Units of weights, which are the largest, how many stay, and how sparse each layer is."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wuskern.policies.sparse.distribution import sparsities
from wuskern.policies.sparse.patterns import Pattern, largest, remaining


@st.composite
def groups(draw) -> tuple[list[list[float]], list[int]]:
    """Scores with many ties, and how many of each group."""
    units = draw(st.integers(1, 9))
    values = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan])
    scores = draw(st.lists(st.lists(values, min_size=units, max_size=units), min_size=1, max_size=5))
    return scores, draw(st.lists(st.integers(0, units), min_size=len(scores), max_size=len(scores)))


@settings(max_examples=300)
@given(groups())
def test_the_largest_are_those_that_a_plain_sort_finds(drawn):
    scores, counts = drawn
    chosen = largest(torch.tensor(scores), torch.tensor(counts))
    for row, group, count in zip(chosen.tolist(), scores, counts, strict=True):
        order = sorted(range(len(group)), key=lambda i: (-math.inf if math.isnan(group[i]) else -group[i], i))
        assert {i for i, yes in enumerate(row) if yes} == set(order[:count])


@given(st.integers(1, 10**7), st.integers(0, 999))
def test_what_remains_is_all_but_the_whole_part_of_the_zeros(units, thousandth):
    """In whole numbers: a share such as .9 of 10 is 9, not 8.99."""
    assert remaining(units, thousandth / 1000) == max(1, units - units * thousandth // 1000)


@pytest.mark.parametrize(
    ("pattern", "scores"),
    [
        (Pattern(), [[1, 2, 3, 4, 5, 6, 7, 8]]),
        (Pattern(block=2), [[1 + 2 + 5 + 6, 3 + 4 + 7 + 8]]),
        (Pattern(n=1, m=2), [[1, 2], [3, 4], [5, 6], [7, 8]]),
    ],
)
def test_scores_by_hand(pattern, scores):
    weight = torch.tensor([[1.0, -2, 3, 4], [5, 6, -7, 8]])
    assert pattern.scores(weight).tolist() == scores
    assert pattern.scores(weight.bfloat16()).dtype is torch.float32
    assert pattern.count(weight) == sum(map(len, scores))


def test_masks_by_hand():
    weight = torch.empty(2, 4)
    assert Pattern(block=2).mask(torch.tensor([[False, True]]), weight).tolist() == [[False, False, True, True]] * 2
    two = Pattern(n=1, m=2).mask(torch.tensor([[True, False], [False, True], [True, False], [True, False]]), weight)
    assert two.tolist() == [[True, False, False, True], [True, False, True, False]]


@settings(max_examples=60)
@given(
    st.sampled_from([Pattern(), Pattern(block=2), Pattern(block=3), Pattern(n=2, m=3)]),
    st.booleans(),
    st.integers(0, 99),
)
def test_units_and_masks_are_each_others_inverse(pattern, convolution, seed):
    weight = torch.empty(6, 4, 3, 3).to(memory_format=torch.channels_last) if convolution else torch.empty(12, 6)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(pattern.count(weight), generator=generator) < 0.5
    units = drawn.reshape(-1, pattern.m or len(drawn))
    mask = pattern.mask(units, weight)
    assert (mask.shape, mask.stride()) == (weight.shape, weight.stride())
    assert torch.equal(pattern.units(mask), units)
    assert int(mask.sum()) == int(units.sum()) * pattern.block**2
    assert torch.equal(pattern.scores(mask.float()) > 0, units)


@pytest.mark.parametrize("text", ["2:4", "2of4"])
def test_a_pattern_of_groups_is_read_in_both_forms(text):
    assert Pattern.of(text, 16) == Pattern(1, 2, 4)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Pattern.of("4:2", 1), "pattern: expected unstructured, block, or n:m (nofm) with n under m, got '4:2'"),
        (lambda: Pattern.of(3, 1), "pattern: expected unstructured, block, or n:m (nofm) with n under m, got 3"),
        (lambda: Pattern.of("block", 0), "block: expected at least 1, got 0"),
        (lambda: Pattern(block=4).check(torch.empty(8, 6)), "block: expected a divisor of 8 and 6, got 4"),
        (lambda: Pattern(1, 2, 4).check(torch.empty(8, 6)), "pattern: expected m to divide 6 inputs, got 2:4"),
    ],
)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        act()


# ---- how sparse each layer is -------------------------------------------------------------------------------------------


def erk_of_the_public_code(shapes: dict[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """The arithmetic of google-research/rigl, sparse_utils.py."""
    dense: set[str] = set()
    while True:
        divisor = rhs = 0.0
        raw = {}
        for name, shape in shapes.items():
            n = math.prod(shape)
            zeros = math.floor(sparsity * n)
            if name in dense:
                rhs -= zeros
            else:
                rhs += n - zeros
                raw[name] = sum(shape) / n
                divisor += raw[name] * n
        scale, most = rhs / divisor, max(raw.values())
        if most * scale <= 1:
            return {name: 0.0 if name in dense else 1 - scale * raw[name] for name in shapes}
        dense |= {name for name in raw if raw[name] == most}


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
def test_erk_is_that_of_the_public_code(sparsity):
    """Sizes of which every share is whole, as the code rounds the zeros of each layer."""
    shapes = {"a": (16, 5, 3, 3), "b": (40, 16, 3, 3), "c": (64, 40, 3, 3), "d": (500, 64)}
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    found, expected = sparsities(weights, sparsity, "erk"), erk_of_the_public_code(shapes, sparsity)
    assert found == pytest.approx(expected, abs=1e-9)
    total = sum(weight.numel() for weight in weights.values())
    assert sum(found[name] * weights[name].numel() for name in weights) == pytest.approx(sparsity * total)
    assert [found[name] == 0 for name in "abcd"] == [sparsity == 0.5, False, False, False]


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_no_zeros_at_all(distribution):
    assert sparsities({"a": torch.empty(3, 4), "b": torch.empty(9, 9)}, 0, distribution) == pytest.approx({"a": 0, "b": 0})


def test_a_mapping_goes_by_name():
    weights = {"a": torch.empty(3, 4), "b": torch.empty(9, 9)}
    assert sparsities(weights, {"b": 0.5, "a": 0}, "uniform") == {"a": 0, "b": 0.5}
    with pytest.raises(ValueError, match="sparsity: expected the layers a, b, got a"):
        sparsities(weights, {"a": 0.5}, "uniform")
    with pytest.raises(ValueError, match="sparsity of b: expected a number from 0 and under 1, got 1"):
        sparsities(weights, {"a": 0.5, "b": 1}, "uniform")
    with pytest.raises(ValueError, match="distribution: expected one of uniform, erk, got 'even'"):
        sparsities(weights, 0.5, "even")
