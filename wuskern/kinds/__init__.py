"""What each kind of layer does with its weight: one frozen value for each, which says how its products are called.

Shapes: ``x`` is the layer's input, ``dy`` the gradient of its output. ``like``: how the gradient of x has to lie in memory, as
the kind's ``like`` said in forward. ``units`` and ``fprop`` take the weight as the layer has it, all others with its output
units in dimension 0, as ``rows_first`` gives it, and gradients of it have them there, too.
"""

from wuskern.kinds.base import Kind, Sides, pair
from wuskern.kinds.conv2d import Conv2d
from wuskern.kinds.linear import LINEAR, Linear

__all__ = ["LINEAR", "Conv2d", "Kind", "Linear", "Sides", "pair"]
