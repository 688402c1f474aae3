"""``wuskern doctor --explain`` on the command line: how one row-sparse backward is computed, on this CPU or on a GPU."""

import argparse

import torch

from wuskern.choices import TopK
from wuskern.doctor import explain_cpu, explain_cuda
from wuskern.doctor.question import Question
from wuskern.doctor.report import Report
from wuskern.kernels.cuda.gpus import capability_of
from wuskern.kernels.problem import Problem

LINEAR, CONV2D = "TOKENSxOUTxIN", "BATCHxCHANNELSxOUTxSIDExKERNEL"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def add_arguments(doctor: argparse.ArgumentParser) -> None:
    """Gives the parser ``--explain`` and what goes with it."""
    doctor.add_argument(
        "--explain",
        nargs=2,
        metavar=("KIND", "SHAPE"),
        help="look at one row-sparse backward instead, and say how it is computed: linear TOKENSxOUTxIN, such as "
        "4096x1024x1024, or conv2d BATCHxCHANNELSxOUTxSIDExKERNEL, such as 64x128x128x16x3",
    )
    of = doctor.add_argument_group("of --explain")
    amount = of.add_mutually_exclusive_group()
    amount.add_argument("--ratio", type=float, help="share of the rows (default: 0.05)")
    amount.add_argument("--k", type=int, help="number of rows")
    of.add_argument("--scope", default="both", help="weight, or both: the input gradient from those rows too (default: both)")
    of.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or float64")
    of.add_argument("--device", default="cpu", help="cpu, measured now (default), or cuda, counted: needs no GPU")
    of.add_argument("--capability", help="of --device cuda, such as 9.0 or gfx942 (default: that of this machine's GPU)")
    of.add_argument("--stride", type=int, default=1, help="of conv2d (default: 1)")
    of.add_argument("--padding", type=int, help="of conv2d (default: half the kernel)")
    of.add_argument("--groups", type=int, default=1, help="of conv2d (default: 1)")
    of.add_argument("--channels-last", action="store_true", help="memory format of conv2d")


def of_arguments(a: argparse.Namespace) -> Report:
    """The report on what :func:`add_arguments` parsed. Raises ``ValueError`` for what is none of its values."""
    question = _question(a)
    _one_of("--device", a.device, ("cpu", "cuda"))
    if a.device == "cpu":
        return explain_cpu.report(question)
    capability = a.capability
    if capability is None:
        if not torch.cuda.is_available():
            raise ValueError("--capability: expected one, such as 9.0, on a machine without a GPU, got none")
        capability = capability_of(torch.device("cuda"))
    return explain_cuda.report(question, capability)


def _question(a: argparse.Namespace) -> Question:
    kind, shape = a.explain
    _one_of("--explain", kind, ("linear", "conv2d"))
    _one_of("--dtype", a.dtype, tuple(DTYPES))
    dtype = DTYPES[a.dtype]
    choice = TopK(ratio=0.05 if a.k is None and a.ratio is None else a.ratio, k=a.k, scope=a.scope)
    if kind == "linear":
        tokens, out, inputs = _numbers(shape, 3, LINEAR)
        return Question(Problem("rowsparse_wgrad", dtype, tokens, inputs, out, choice.count(out)), choice)
    batch, channels, out, side, kernel = _numbers(shape, 5, CONV2D)
    padding = kernel // 2 if a.padding is None else a.padding
    sides = (side,) * 2, (kernel,) * 2, (a.stride,) * 2, (padding,) * 2, (1, 1)
    k, planes = choice.count(out, a.groups), not a.channels_last
    return Question(Problem("rowsparse_wgrad_conv2d", dtype, batch, channels, out, k, *sides, a.groups, planes), choice)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _numbers(shape: str, count: int, expected: str) -> list[int]:
    parts = shape.split("x")
    if len(parts) != count or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--explain: expected {expected} in positive numbers, got {shape!r}")
    return [int(part) for part in parts]
