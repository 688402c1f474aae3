"""The kernels of Triton, one file per op, imported only where Triton is installed and wanted; and the choice of their
tiles (``tiles``, ``configs``, ``tuning``), which imports no Triton."""
