"""What training without some of the weight gradients would save on a model, measured before it is tried."""

from wuskern.profile.profile import profile
from wuskern.profile.result import LayerTimes, LeftAlone, Measured, Profile

__all__ = ["LayerTimes", "LeftAlone", "Measured", "Profile", "profile"]
