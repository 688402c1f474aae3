"""The smallest trainings of the command line, whole or killed after a checkpoint."""

import contextlib

import numpy as np
import pytest

from wuskern import cli
from wuskern.train import checkpoint

SMALL = ("--model", "mlp", "--width", ".05", "--batch", "8")


def write_images(path):
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 1, 4, 4), dtype=np.float32), np.arange(40) % 3
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


def said(capsys, *arguments):
    """The exit code of ``wuskern train``, and what it complained of: a line, or none."""
    code = cli.main(["train", *map(str, arguments)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wuskern: ")]
    assert len(lines) == (code != 0)
    return code, "".join(lines)


class Killed(BaseException):
    """Stands for the end of the process after a checkpoint was written."""


@contextlib.contextmanager
def killed_after(rounds):
    """What is run inside ends with the checkpoint of that number."""
    save, left = checkpoint.save, [rounds]

    def counted(*args, **kwargs):
        save(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", counted)
        with pytest.raises(Killed):
            yield
