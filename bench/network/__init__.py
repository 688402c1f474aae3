"""Accuracy over time of two processes with a link between them, by what is sent: :mod:`bench.network.__main__` runs it."""
