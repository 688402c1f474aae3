"""Training policies: they decide when layers skip, and remember. One file per method."""

from wuskern.policies.base import Policy
from wuskern.policies.wus import WUS
from wuskern.policies.wus_lr import WUSLR

__all__ = ["WUS", "WUSLR", "Policy"]
