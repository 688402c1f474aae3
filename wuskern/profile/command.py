"""``wuskern profile`` on the command line: a profile of a model that a function of the user's file makes."""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from wuskern.common.arguments import one_of, positive, whole
from wuskern.common.from_file import function_from, said_in_one_line
from wuskern.profile.profile import profile
from wuskern.profile.result import Profile

DTYPES = {"float32": None, "bf16": torch.bfloat16}
MODEL, BATCH = "FILE.py:make_model", "--batch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives the parser the arguments of a profile."""
    parser.add_argument(
        "model",
        metavar=MODEL,
        help="a function without arguments that returns the model, or the model and a batch for it",
    )
    parser.add_argument(
        BATCH,
        metavar="FILE.py:make_batch",
        help="a function without arguments that returns the model's input: a tensor, a sequence of its positional inputs, or a "
        "mapping of its keyword inputs",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it may take (default: 60)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's)")
    parser.add_argument("--dtype", default="float32", help="float32 (default): as the model is; or bf16: with autocast")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all numbers to a file, too")


def of_arguments(a: argparse.Namespace) -> Profile:
    """The profile that :func:`add_arguments` parsed. Raises ``ValueError``, ``TypeError`` for what cannot be."""
    positive("--seconds", a.seconds)
    if a.threads is not None:
        whole("--threads", a.threads)
        torch.set_num_threads(a.threads)
    one_of("--dtype", a.dtype, tuple(DTYPES))
    if a.json is not None and (a.json.is_dir() or not a.json.absolute().parent.is_dir()):
        raise ValueError(f"--json: expected a file in a folder that exists, got {a.json}")
    make_model = function_from(a.model, MODEL)
    make_batch = None if a.batch is None else function_from(a.batch, BATCH)
    model, batch = _made(a, make_model, make_batch)
    with said_in_one_line(MODEL, _file(a.model)):
        return profile(model, batch, seconds=a.seconds, autocast=DTYPES[a.dtype])


def _made(a: argparse.Namespace, make_model: Any, make_batch: Any) -> tuple[nn.Module, Any]:
    with said_in_one_line(MODEL, _file(a.model)):
        made = make_model()
    pair = isinstance(made, tuple) and len(made) == 2
    model = made[0] if pair else made
    if not isinstance(model, nn.Module):
        raise TypeError(f"{MODEL}: expected it to return a torch.nn.Module, or that and a batch, got {type(model).__name__}")
    if pair == (make_batch is not None):
        got = "both" if pair else "neither"
        raise ValueError(f"{BATCH}: expected a function, or a batch beside the model that {MODEL} returns, got {got}")
    if pair:
        return model, made[1]
    with said_in_one_line(BATCH, _file(a.batch)):
        return model, make_batch()


def _file(text: str) -> str:
    return text.rpartition(":")[0]
