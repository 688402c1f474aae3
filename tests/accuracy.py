"""The one rule of correctness of all tests. It lies in the package, whose benchmark verifies by it before it times."""

from wuskern.bench.accuracy import FEW, assert_all_as_right, assert_as_right_as_stock, exact_channel_sums

__all__ = ["FEW", "assert_all_as_right", "assert_as_right_as_stock", "exact_channel_sums"]
