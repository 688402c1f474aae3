"""Skipped and row-sparse gradients between processes, on torch.distributed: what nobody computed is not sent.

``prepare`` is for ``DistributedDataParallel``. FSDP2 (``fully_shard`` of a model converted before) works without it, with
``skip`` and the dense form of ``rows``: each process takes the same decision, and a metric that a policy decides by has to be
the same everywhere, see ``broadcast_metric``.
"""

from wuskern.distributed.metric import broadcast_metric
from wuskern.distributed.prepared import Prepared, prepare

__all__ = ["Prepared", "broadcast_metric", "prepare"]
