"""Text as windows of bytes: each label is the byte behind."""

import sysconfig
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wuskern.train import data, text


def test_a_hand_worked_text():
    # 40 bytes: 36 train and 4 test; windows of 3: (36 - 1) // 3 = 11 and (4 - 1) // 3 = 1
    (x, y), (x_test, y_test) = text.windows(bytes(range(40)), 3)
    assert x.shape == y.shape == (11, 3)
    assert (x[0].tolist(), y[0].tolist()) == ([0, 1, 2], [1, 2, 3])
    assert (x[10].tolist(), y[10].tolist()) == ([30, 31, 32], [31, 32, 33])
    assert (x_test.tolist(), y_test.tolist()) == ([[36, 37, 38]], [[37, 38, 39]])


@given(st.binary(min_size=1, max_size=300), st.integers(1, 12))
def test_windows_put_together_are_the_text(content, context):
    test = len(content) // 10
    if test <= context:
        with pytest.raises(ValueError, match=f"--data: expected at least {10 * context + 10} bytes of text for windows of"):
            text.windows(content, context)
        return
    for part, (x, y) in zip((content[:-test], content[-test:]), text.windows(content, context), strict=True):
        assert x.dtype == y.dtype == torch.int64
        read = bytes(x.flatten().tolist())
        assert part.startswith(read + bytes([y[-1, -1]]))
        assert len(part) - len(read) - 1 < context
        assert bytes(y.flatten().tolist()) == part[1 : len(read) + 1]


def test_the_standard_library_is_read_by_name_up_to_the_limit():
    loaded = data.load("text", context=16, limit=40_000)
    assert (loaded.name, loaded.classes) == ("text", 256)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    everything = b"".join(path.read_bytes() for path in sources[:40])[:40_000]
    assert bytes(loaded.x_train.flatten().tolist()) == everything[: 35_999 // 16 * 16]
    assert loaded.x_test.shape == (3_999 // 16, 16)
    assert loaded.checksum() == data.load("text", context=16, limit=40_000).checksum()
    assert loaded.checksum() != data.load("text", context=16, limit=39_000).checksum()


def test_a_file_of_two_byte_characters_may_be_cut_within_one(tmp_path):
    path = tmp_path / "dots.txt"
    path.write_text("ä" * 300, encoding="utf-8")
    loaded = data.load(str(path), context=8, limit=301)
    assert loaded.name == "dots"
    assert loaded.x_train[0].tolist() == [0xC3, 0xA4] * 4
    assert loaded.x_train.shape == (33, 8)
    assert data.load(str(path), context=8).x_train.shape == (67, 8)


def test_what_is_not_text(tmp_path):
    path = tmp_path / "image.txt"
    for content, message in (
        (b"a" * 1000 + b"\xff" + b"a" * 1000, "expected a readable file of UTF-8 text, got .*image.txt"),
        (b"a" * 1000 + b"\xc3", "expected a readable file of UTF-8 text"),
        (b"", "expected at least 650 bytes of text for windows of 64, got 0"),
        (b"a" * 649, "expected at least 650 bytes of text for windows of 64, got 649"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"--data: {message}"):
            data.load(str(path))
    with pytest.raises(ValueError, match=r"--data: expected a readable file of UTF-8 text, got .*absent"):
        data.load(str(tmp_path / "absent.txt"))


def test_wrong_windows_and_limits():
    with pytest.raises(ValueError, match="context: expected at least 1, got 0"):
        data.load("text", context=0)
    with pytest.raises(ValueError, match="limit: expected at least 1, got -5"):
        data.load("text", limit=-5)
    with pytest.raises(TypeError, match=r"context: expected a whole number, got 1\.5"):
        data.load("text", context=1.5)


def test_a_python_without_its_source(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ValueError, match=r"--data: text needs the standard library's source, got no \*\.py file in"):
        data.load("text")


def test_text_moves_as_it_is_and_has_no_image_size():
    loaded = data.load("text", limit=10_000)
    moved = loaded.to("cpu", torch.channels_last)
    assert torch.equal(moved.x_train, loaded.x_train)
    assert moved.x_train.is_contiguous()
    with pytest.raises(ValueError, match="--image-size: expected with images only, got 32 with text"):
        loaded.resized(32)
