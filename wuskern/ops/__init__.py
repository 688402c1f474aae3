"""Every op: its docstring is the contract, its schema and fake say the same to PyTorch, and its backend is chosen per call.

Two namespaces carry the same schemas. ``wuskern::<op>`` is the op that a graph sees; it checks its arguments, asks
``kernels.backends`` and runs. ``wuskern_native::<op>`` is where the compiled libraries register their kernels. The functions
here do in eager mode what ``wuskern::<op>`` does, without a dispatch into Python.

``rows`` are indices of output units: int64, ascending, each once, as :func:`select_rows` gives them. Their values are not
looked at here, which would wait for a GPU: one out of range raises on the CPU and is undefined elsewhere.

All tensors of a call are on one device. What is no argument of an op raises ``TypeError`` or ``ValueError`` by the argument's
name, before anything is read or written; ``wuskern_native``, called by itself, raises ``RuntimeError``.

A product of the chosen rows is summed by whoever multiplies. Our kernels sum in float32 (float64 for float64), in an order that
depends on the problem and the machine alone: the same bits each time. PyTorch's libraries, which multiply most on the CPU and
what is faster so on a GPU, sum as PyTorch has them, under its settings: cuBLAS may join partial sums in 16 bits unless
``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`` and its twin for fp16 are False, float32 may be TF32,
cuDNN's weight gradient may have other bits each time unless ``torch.use_deterministic_algorithms`` asks for the same, and a
processor without products of 16 bits may join the sums of images in 16 bits. ``backend("native")`` takes none on a GPU.
"""

from wuskern.ops.checks import DTYPES, SCORES
from wuskern.ops.contract import NAMES

# In the order that NAMES has, and doctor's report with it.
from wuskern.ops.statistics import bias_grad, row_stats, select_rows, top_rows

# isort: split
from wuskern.ops.products import (
    gather_rows,
    rowsparse_dgrad,
    rowsparse_dgrad_conv2d,
    rowsparse_wgrad,
    rowsparse_wgrad_conv2d,
)
from wuskern.ops.updates import rowsparse_adam_, rowsparse_sgd_

# isort: split
from wuskern.ops.elementwise import pack_bits, piecewise_, scale_by_bits, scale_channels

__all__ = [
    "DTYPES",
    "NAMES",
    "SCORES",
    "bias_grad",
    "gather_rows",
    "pack_bits",
    "piecewise_",
    "row_stats",
    "rowsparse_adam_",
    "rowsparse_dgrad",
    "rowsparse_dgrad_conv2d",
    "rowsparse_sgd_",
    "rowsparse_wgrad",
    "rowsparse_wgrad_conv2d",
    "scale_by_bits",
    "scale_channels",
    "select_rows",
    "top_rows",
]
