"""The rule of correctness itself, on numbers worked by hand."""

import pytest
import torch

from tests.accuracy import FEW, assert_all_as_right, assert_as_right_as_stock, exact_channel_sums

EPS = 2.0**-23


def ones(count: int, off: float = 0.0) -> torch.Tensor:
    """Ones, of which the first is off by so many eps."""
    found = torch.ones(count)
    found[0] += off * EPS
    return found


@pytest.mark.parametrize(("stock_off", "ours_off", "right"), [(0, 1, True), (0, 2, False), (3, 7, True), (3, 8, False)])
def test_of_many_outputs_ours_may_err_twice_as_much_as_stock_and_an_eps_more(stock_off, ours_off, right):
    results = ones(FEW, ours_off), ones(FEW, stock_off), ones(FEW).double()
    for magnitudes in (None, 1e9 * ones(FEW)):  # which say nothing where there are so many
        if right:
            assert_as_right_as_stock(*results, magnitudes)
        else:
            with pytest.raises(AssertionError, match="is over"):
                assert_as_right_as_stock(*results, magnitudes)


@pytest.mark.parametrize(("magnitude", "ours_off", "right"), [(3.0, 12, True), (3.0, 14, False), (0.0, 1, True)])
def test_of_few_outputs_what_they_sum_allows_an_error_too(magnitude, ours_off, right):
    """Stock has none: 4 eps of 3, and half an eps of the result, 1."""
    results = ones(20, ours_off), ones(20), ones(20).double(), magnitude * ones(20)
    if right:
        assert_as_right_as_stock(*results)
    else:
        with pytest.raises(AssertionError, match="over what its sums allow"):
            assert_as_right_as_stock(*results)


def test_a_half_precision_result_is_a_float32_sum_rounded_once():
    exact, magnitudes = torch.full((3,), 1.0), torch.full((3,), 8.0)
    half, eps = torch.ones(3, dtype=torch.float16), 2.0**-10
    assert_as_right_as_stock(half + eps, half, exact.double(), magnitudes)
    with pytest.raises(AssertionError, match="is over"):
        assert_as_right_as_stock(half + 2 * eps, half, exact.double(), magnitudes)


def test_few_outputs_without_magnitudes_are_refused_on_every_machine():
    with pytest.raises(AssertionError, match="magnitudes: expected with fewer than 1000 outputs, got 999"):
        assert_as_right_as_stock(ones(999), ones(999), ones(999).double())
    with pytest.raises(AssertionError, match="expected at least 1000 outputs, got 999"):
        assert_all_as_right({"a": ones(999)}, {"a": ones(999)}, {"a": ones(999).double()})


def test_a_result_that_is_no_number_or_of_another_kind_is_not_right():
    many = ones(FEW)
    for wrong in (many * float("nan"), many.half(), many[1:]):
        with pytest.raises(AssertionError):
            assert_as_right_as_stock(wrong, many, many.double())


def test_in_one_computation_few_outputs_may_err_as_the_others_do():
    exact = {"many": ones(FEW).double(), "few": 8 * ones(2).double()}
    stock = {"many": ones(FEW, 3), "few": 8 * ones(2)}
    assert_all_as_right({"many": ones(FEW), "few": 8 * ones(2, 7)}, stock, exact)
    with pytest.raises(AssertionError, match="few: error"):
        assert_all_as_right({"many": ones(FEW), "few": 8 * ones(2, 8)}, stock, exact)


def test_channel_sums_of_float64_are_rounded_once():
    values = torch.tensor([[1.0, 1e100, 1.0, -1e100]], dtype=torch.float64)
    assert exact_channel_sums(values, 0).tolist() == [2.0]
    assert exact_channel_sums(values.t(), -1, torch.sign).tolist() == [2.0]
    assert exact_channel_sums(torch.tensor([[1.0, -3.0]]), 1, torch.abs).tolist() == [1.0, 3.0]
