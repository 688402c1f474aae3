"""Training policies: they decide when layers skip, and remember. One file per method."""

from wuskern.policies.base import Policy
from wuskern.policies.wus import WUS

__all__ = ["WUS", "Policy"]
