"""``wuskern doctor --explain`` on the command line: how one sparse backward is computed, on this CPU or on a GPU."""

import argparse

import torch

from wuskern.choices import TopColumns, TopK, Units
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
        help="look at one backward of some rows or columns instead, and say how it is computed: linear TOKENSxOUTxIN, such as "
        "4096x1024x1024, or conv2d BATCHxCHANNELSxOUTxSIDExKERNEL, such as 64x128x128x16x3",
    )
    of = doctor.add_argument_group("of --explain")
    amount = of.add_mutually_exclusive_group()
    amount.add_argument("--ratio", type=float, help="share of the rows (default: 0.05; all with --columns)")
    amount.add_argument("--k", type=int, help="number of rows")
    of.add_argument("--columns", type=int, metavar="K", help="number of columns: input units, or input channels (default: all)")
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
    if kind == "linear":
        tokens, out, inputs = numbers("--explain", shape, 3, LINEAR)
        whole = Problem("rowsparse_wgrad", dtype, tokens, inputs, out, out)
    else:
        batch, channels, out, side, kernel = numbers("--explain", shape, 5, CONV2D)
        padding = kernel // 2 if a.padding is None else a.padding
        sides = (side,) * 2, (kernel,) * 2, (a.stride,) * 2, (padding,) * 2, (1, 1)
        whole = Problem(
            "rowsparse_wgrad_conv2d", dtype, batch, channels, out, out, *sides, a.groups, planes=not a.channels_last
        )
    return _chosen(a, whole)


def _chosen(a: argparse.Namespace, whole: Problem) -> Question:
    """The question about the chosen rows and columns of a layer. Raises ``ValueError`` where a choice does not fit it."""
    columns, rows = None if a.columns is None else TopColumns(k=a.columns), None
    if columns is not None:
        columns.check(Units("", whole.out, whole.channels, whole.groups))
    if columns is None or a.k is not None or a.ratio is not None:
        rows = TopK(ratio=0.05 if a.k is None and a.ratio is None else a.ratio, k=a.k, scope=a.scope)
        whole = whole._replace(k=rows.count(whole.out, whole.groups))
    all_rows, all_columns = whole.k == whole.out, a.columns == whole.channels
    return Question(whole, None if all_rows else rows, None if all_columns else columns)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def numbers(name: str, shape: str, count: int, expected: str) -> list[int]:
    """The sizes in a text such as "4096x1024x1024". Raises ``ValueError`` for what is none, in the argument's name."""
    parts = shape.split("x")
    if len(parts) != count or not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**31 for part in parts):
        raise ValueError(f"{name}: expected {expected} in positive numbers, got {shape!r}")
    return [int(part) for part in parts]
