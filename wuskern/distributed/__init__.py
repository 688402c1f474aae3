"""What sends skipped and sparse gradients between processes, on torch.distributed: what nobody computed is not sent.

``prepare`` is for ``DistributedDataParallel``. FSDP2 (``fully_shard`` of a model converted before) works without it, with
``skip`` and the dense form of ``rows``. All processes take the same decisions: ``broadcast_metric`` makes what a policy decides
by the same everywhere, ``check_flags`` says whether they did.
"""

from wuskern.distributed.flags import check_flags
from wuskern.distributed.metric import broadcast_metric
from wuskern.distributed.prepared import Prepared, prepare

__all__ = ["Prepared", "broadcast_metric", "check_flags", "prepare"]
