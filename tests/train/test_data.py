"""Data from digits and from .npz files; broken files end with a sentence."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wuskern.train import data

GOOD = {
    "x_train": np.random.default_rng(0).random((6, 1, 4, 4), dtype=np.float32),
    "y_train": np.array([0, 1, 2, 0, 1, 2]),
    "x_test": np.random.default_rng(1).random((3, 1, 4, 4), dtype=np.float32),
    "y_test": np.array([0, 1, 2]),
}


def write(path, **changes):
    arrays = GOOD | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return str(path)


def test_digits_are_split_evenly():
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    assert digits.classes == 10
    counts = torch.bincount(digits.y_test)
    assert counts.min() >= 34
    assert counts.max() <= 38
    assert abs(digits.x_train.mean().item()) < 1e-5
    assert torch.equal(digits.x_test, data.load("digits").x_test)


def test_the_checksum_sees_every_array():
    digits = data.load("digits")
    assert digits.checksum() == data.load("digits").checksum()
    for name in ("x_train", "y_train", "x_test", "y_test"):
        changed = getattr(digits, name).clone()
        changed.view(-1)[-1] += 1
        assert replace(digits, **{name: changed}).checksum() != digits.checksum()


def test_npz_round_trip(tmp_path):
    loaded = data.load(write(tmp_path / "mine.npz"))
    assert loaded.name == "mine"
    assert loaded.classes == 3
    np.testing.assert_array_equal(loaded.x_train.numpy(), GOOD["x_train"])
    assert loaded.resized(8).x_test.shape == (3, 1, 8, 8)


def test_a_table_is_images_of_one_row(tmp_path):
    x = np.arange(12.0).reshape(6, 2)
    found = data.load(write(tmp_path / "table.npz", x_train=x, x_test=x[:3]))
    assert found.x_train.shape == (6, 1, 1, 2)
    assert found.x_train[4, 0, 0].tolist() == [8, 9]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_channels_last_are_refused_with_a_hint(tmp_path, channels):
    x = np.zeros((6, 8, 8, channels), dtype=np.float32)
    with pytest.raises(ValueError, match=r"x_train: expected \[N, C, H, W\], got .* looks like channels last"):
        data.load(write(tmp_path / "images.npz", x_train=x, x_test=x[:3]))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 3), (3, 3, 3), (4, 8, 1)])
def test_images_with_channels_first_are_taken(tmp_path, shape):
    x = np.zeros((6, *shape), dtype=np.float32)
    assert data.load(write(tmp_path / "images.npz", x_train=x, x_test=x[:3])).x_train.shape[1:] == shape


def test_npz_of_bytes_without_a_channel_dimension(tmp_path):
    x = np.full((6, 4, 4), 255, dtype=np.uint8)
    loaded = data.load(write(tmp_path / "a.npz", x_train=x, x_test=x[:3]))
    assert loaded.x_train.shape == (6, 1, 4, 4)
    assert loaded.x_train.max() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "expected the arrays x_train, y_train, x_test, y_test in .*, got no y_test"),
        ({"x_train": np.zeros(6, np.float32)}, r"x_train: expected \[N, features\], \[N, H, W\] or \[N, C, H, W\]"),
        ({"x_train": np.zeros((6, 1, 4, 4), np.int64)}, "x_train: expected floating numbers or uint8, got int64"),
        ({"x_train": np.full((6, 1, 4, 4), np.nan)}, "x_train: expected finite float32 numbers, got NaN or infinity"),
        ({"x_train": np.full((6, 1, 4, 4), 1e300)}, "x_train: expected finite float32 numbers"),
        ({"y_train": np.full(6, 2**63, np.uint64)}, "y_train: expected labels from 0 to 99999"),
        ({"x_test": np.zeros((3, 1, 5, 5))}, r"x_test: expected samples of \[1, 4, 4\], as x_train, got \[1, 5, 5\]"),
        ({"y_train": np.zeros(5, int)}, "y_train: expected 6 labels, one for each sample, got 5"),
        ({"y_train": np.zeros(6)}, "y_train: expected .* whole numbers, got .* of float64"),
        ({"y_test": np.array([0, -1, 2])}, "y_test: expected labels from 0 to 99999, got -1 to 2"),
        (
            {"y_test": np.array([0, 1, None], dtype=object)},
            "expected a readable .npz file of plain arrays, got .*': it holds Python objects: loading those could run code$",
        ),
        ({"x_train": np.zeros((0, 1, 4, 4)), "y_train": np.zeros(0, int)}, "x_train: expected .* with N > 0"),
    ],
)
def test_a_wrong_array_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path / "bad.npz", **changes))


def test_a_broken_file_or_name(tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not really")
    for source, message in (
        (str(broken), "expected a readable .npz file of plain arrays"),
        (str(tmp_path / "absent.npz"), "expected a readable .npz file of plain arrays"),
        (
            "mnist",
            "expected digits, cifar10, cifar100, text, the path of an .npz or .txt file, or FILE.py:function, got 'mnist'",
        ),
    ):
        with pytest.raises(ValueError, match=f"--data: {message}"):
            data.load(source)
