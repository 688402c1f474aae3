"""Every op's launcher. Imports the package triton: for who has made sure that it is there."""

from collections.abc import Callable
from typing import Any

from wuskern.kernels.triton.bias_grad import bias_grad
from wuskern.kernels.triton.gather_rows import gather_rows
from wuskern.kernels.triton.row_stats import row_stats
from wuskern.kernels.triton.rowsparse_adam_ import rowsparse_adam_
from wuskern.kernels.triton.rowsparse_dgrad import rowsparse_dgrad, rowsparse_dgrad_conv2d
from wuskern.kernels.triton.rowsparse_sgd_ import rowsparse_sgd_
from wuskern.kernels.triton.rowsparse_wgrad import rowsparse_wgrad, rowsparse_wgrad_conv2d
from wuskern.kernels.triton.select_rows import select_rows

OPS: dict[str, Callable[..., Any]] = {
    "bias_grad": bias_grad,
    "row_stats": row_stats,
    "select_rows": select_rows,
    "gather_rows": gather_rows,
    "rowsparse_wgrad": rowsparse_wgrad,
    "rowsparse_wgrad_conv2d": rowsparse_wgrad_conv2d,
    "rowsparse_dgrad": rowsparse_dgrad,
    "rowsparse_dgrad_conv2d": rowsparse_dgrad_conv2d,
    "rowsparse_sgd_": rowsparse_sgd_,
    "rowsparse_adam_": rowsparse_adam_,
}
