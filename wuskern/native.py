"""The CPU's half of backend ``native`` that is Python: operands made small by our kernels, multiplied by PyTorch's library."""

from wuskern.reference import rowsparse_dgrad, rowsparse_dgrad_conv2d, rowsparse_wgrad, rowsparse_wgrad_conv2d

__all__ = ["rowsparse_dgrad", "rowsparse_dgrad_conv2d", "rowsparse_wgrad", "rowsparse_wgrad_conv2d"]
