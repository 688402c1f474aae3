"""Arrays of users: what layouts and kinds of numbers are taken, said, or refused."""

import numpy as np
import pytest
import torch

from wuskern.train import arrays


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    "shape", [(9, 8, 8, 3), (9, 8, 8, 1), (9, 28, 30, 1), (9, 4, 4, 3), (9, 3, 3, 1), (9, 16, 16, 4), (9, 8, 8, 2)]
)
def test_channels_last_are_refused_with_a_hint(shape):
    with pytest.raises(
        ValueError, match=r"x: expected \[N, C, H, W\], got .* looks like channels last: x.transpose\(0, 3, 1, 2\)"
    ):
        arrays.inputs("x", zeros(*shape), own_model=False)
    x, notes = arrays.inputs("x", zeros(*shape), own_model=True)
    assert x.shape == shape
    assert notes == [f"x: {list(shape)} looks like channels last, and is taken as it is"]


@pytest.mark.parametrize(
    "shape", [(9, 3, 8, 8), (9, 1, 8, 3), (9, 3, 3, 3), (9, 16, 4, 4), (9, 1, 1, 3), (9, 64, 1, 1), (9, 3, 9, 1)]
)
def test_channels_first_are_taken(shape):
    x, notes = arrays.inputs("x", zeros(*shape), own_model=False)
    assert (x.shape, notes) == (shape, [])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("features", [1, 3, 13, 100])
def test_tables_of_any_width(features, dtype):
    table = np.arange(4 * features, dtype=dtype).reshape(4, features)
    as_images, notes = arrays.inputs("x", table, own_model=False)
    as_it_is, _ = arrays.inputs("x", table, own_model=True)
    assert (as_images.shape, as_it_is.shape, as_images.dtype, notes) == ((4, 1, 1, features), table.shape, torch.float32, [])
    assert torch.equal(as_it_is, torch.from_numpy(table.astype(np.float32)))


def test_what_is_said_of_scaling():
    pixels = np.full((2, 1, 4, 4), 51, np.uint8)
    x, notes = arrays.inputs("x", pixels, own_model=False)
    torch.testing.assert_close(x, torch.full((2, 1, 4, 4), 0.2))
    assert notes == ["x: uint8, divided by 255"]
    _, notes = arrays.inputs("x", pixels.astype(float), own_model=False)
    assert notes == ["x: numbers up to 51, taken as they are (uint8 would be divided by 255)"]
    assert arrays.inputs("x", pixels / 255, own_model=False)[1] == []


def test_several_inputs_of_all_kinds():
    given = {
        "ids": np.arange(6, dtype=np.int32).reshape(3, 2),
        "mask": torch.ones(3, 2, dtype=torch.bool),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    x, notes = arrays.inputs("x_train", given, own_model=True)
    assert {name: (value.dtype, value.shape) for name, value in x.inputs.items()} == {
        "ids": (torch.int64, (3, 2)), "mask": (torch.bool, (3, 2)), "half": (torch.float32, (3,)),
    }  # fmt: skip
    assert (len(x), notes, x[torch.tensor([2])]["ids"].tolist()) == (3, [], [[4, 5]])


@pytest.mark.parametrize(
    ("value", "own_model", "message"),
    [
        ([[1.0]], True, r"x: expected an array or a tensor, got list"),
        ({"a": zeros(3), "b": "text"}, True, r"x\['b'\]: expected an array or a tensor, got str"),
        ({"a": zeros(3), "b": zeros(2)}, True, "samples: expected inputs of one length, got {'a': 3, 'b': 2}"),
        ({"a": zeros(3, 2)}, False, "x: expected one array for a model that is not your own, got a"),
        (zeros(3, 2, dtype=np.int64), False, "x: expected floating numbers or uint8, got int64"),
        (zeros(3, 2, dtype=complex), True, "x: expected floating numbers or uint8, got complex128"),
        (np.array([["a"]]), True, "x: expected floating numbers or uint8, got <U1"),
        (np.array(1.0), True, r"x: expected \[N, ...\] with N > 0, got \[\]"),
        (zeros(3, 1, 1, 2, 2), False, r"x: expected \[N, features\], \[N, H, W\] or \[N, C, H, W\] with N > 0"),
        (np.array([[np.inf]]), True, "x: expected finite float32 numbers"),
    ],
)
def test_wrong_samples_are_named(value, own_model, message):
    with pytest.raises(ValueError, match=message):
        arrays.inputs("x", value, own_model)


def test_labels_of_a_sample_may_be_many_for_ones_own_model():
    assert arrays.labels("y", torch.tensor([[1, 2]], dtype=torch.int32), own_model=True).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"y: expected \[N\] whole numbers, got \[1, 2\] of int64"):
        arrays.labels("y", np.array([[1, 2]]), own_model=False)
    with pytest.raises(ValueError, match="y: expected labels from 0 to 99999, got -100 to 2"):
        arrays.labels("y", np.array([[-100, 2]]), own_model=True)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (zeros(3, 4, dtype=np.uint8), zeros(2, 4), "x_test: expected uint8, as x_train, got float32"),
        (zeros(3, 4), zeros(2, 5), r"x_test: expected samples of \[4\], as x_train, got \[5\]"),
        ({"a": zeros(3)}, {"b": zeros(2)}, "x_test: expected a, as x_train, got b"),
        ({"a": zeros(3, 1)}, {"a": zeros(2, 2)}, r"x_test\['a'\]: expected samples of \[1\], as x_train, got \[2\]"),
        ({"a": zeros(3)}, zeros(3), "x_test: expected of the kind of x_train, got ndarray"),
    ],
)
def test_samples_for_testing_are_as_those_for_training(train, test, message):
    with pytest.raises(ValueError, match=message):
        arrays.check_alike(train, test)
    arrays.check_alike(zeros(3, 4), zeros(2, 4, dtype=np.float64))
