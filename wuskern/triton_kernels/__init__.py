"""Triton kernels, one file per op. Imported only where Triton is installed and wanted."""
