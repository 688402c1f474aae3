"""Which cases of a grid ``make test`` has."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection import covering


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_every_two_values_are_together_in_a_case_that_is_kept(sizes):
    cases = [tuple(zip("abcde", values, strict=False)) for values in itertools.product(*map(range, sizes))]
    kept = covering(cases)
    for (i, a), (j, b) in itertools.combinations(enumerate(sizes), 2):
        for x, y in itertools.product(range(a), range(b)):
            assert any((cases[number][i][1], cases[number][j][1]) == (x, y) for number in kept)


def test_a_grid_is_thinned_to_about_the_product_of_its_two_longest_sides():
    cases = [tuple(zip("abcd", values, strict=True)) for values in itertools.product(*map(range, (29, 4, 2, 4)))]
    assert 29 * 4 <= len(covering(cases)) <= 1.2 * 29 * 4


def test_of_cases_with_holes_every_pair_that_there_is_stays():
    cases = [(("a", 0), ("b", 0), ("c", 0)), (("a", 0), ("b", 0), ("c", 1)), (("a", 1), ("b", 0), ("c", 1))]
    assert covering(cases) == {0, 1, 2}
