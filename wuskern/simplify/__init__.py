"""How models become physically smaller: rows that are all zero go, and with them what they feed in the layers behind.

This is code over the graph of ``torch.export``. torch-pruning was weighed: it replaces Parameters, knows no optimizer state,
drops the constant that a dead unit gives behind a sigmoid or a BatchNorm, and cuts through residual sums and softmax without
asking whether the values that go are all dead, so that results change silently."""

from wuskern.simplify.fit import fit_
from wuskern.simplify.report import LayerRows, Report
from wuskern.simplify.simplify import norms_of_rows, simplify, simplify_

__all__ = ["LayerRows", "Report", "fit_", "norms_of_rows", "simplify", "simplify_"]
