"""The CPU: what our compiled kernels and PyTorch's libraries compute together, and which of the two does what."""
