"""The text of small experiments: its bytes are the tokens, and each one's label is the byte after it."""

import codecs
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from wuskern.train.files import opened

TOKENS = 256
TEST_SHARE = 10  # the last of so many equal parts of the text is for testing


def standard_library(limit: int) -> bytes:
    """The first ``limit`` bytes of the ``*.py`` files of this Python's library outside of packages, ordered by name.

    Raises ``ValueError`` where this Python keeps no such files.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    text = _first(limit, sorted(folder.glob("*.py")))
    if not text:
        raise ValueError(f"--data: text needs the standard library's source, got no *.py file in {folder}")
    return text


def file(path: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a UTF-8 file.

    Raises ``ValueError`` where it cannot be read, or those bytes are no UTF-8.
    """
    try:
        text = _first(limit, [path])
        codecs.getincrementaldecoder("utf-8")().decode(text, final=len(text) < limit)  # the last character may be cut
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--data: expected a readable file of UTF-8 text, got {str(path)!r}: {error}") from error
    return text


def windows(text: bytes, context: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The pairs ``(x, y)`` for training, and for testing from the last tenth of the text: int64 ``[N, context]`` each.

    Windows follow one another without overlap; ``y[n, t]`` is the byte behind ``x[n, t]``, of the same part. What is left over
    is dropped. Raises ``ValueError`` where a part has not one window.
    """
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long() if text else torch.empty(0, dtype=torch.long)
    test = len(tokens) // TEST_SHARE
    if test <= context:
        least = TEST_SHARE * (context + 1)
        raise ValueError(f"--data: expected at least {least} bytes of text for windows of {context}, got {len(tokens)}")
    return _windows(tokens[:-test], context), _windows(tokens[-test:], context)


def _windows(tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    length = (len(tokens) - 1) // context * context
    return tokens[:length].view(-1, context).clone(), tokens[1 : length + 1].view(-1, context).clone()


def _first(limit: int, paths: Iterable[Path]) -> bytes:
    text = b""
    for path in paths:
        if len(text) == limit:
            break
        with opened(path) as handle:
            text += handle.read(limit - len(text))
    return text
