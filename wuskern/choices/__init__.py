"""What a layer's next backward does about its weight: the choices, and the plan that has one of each. Frozen values, no state.

A row is one output unit: a row of a Linear's ``[out, in]`` weight, an output channel of a Conv2d's
``[out, in / groups, kh, kw]``. A token is an element of the leading dimensions of a Linear's input, an image of a Conv2d's.
"""

from wuskern.choices.base import Choice, Units
from wuskern.choices.plan import CHOICES, DEFAULTS, DENSE, Parts, Plan, Planned, merge
from wuskern.choices.rows import BIASES, SCOPES, SCORES, Bias, PerExample, RowChoice, Rows, RowwiseChoice, Scope, Score, TopK
from wuskern.choices.tokens import PICKS, Pick, Tokens

__all__ = [
    "BIASES",
    "CHOICES",
    "DEFAULTS",
    "DENSE",
    "PICKS",
    "SCOPES",
    "SCORES",
    "Bias",
    "Choice",
    "Parts",
    "PerExample",
    "Pick",
    "Plan",
    "Planned",
    "RowChoice",
    "Rows",
    "RowwiseChoice",
    "Scope",
    "Score",
    "Tokens",
    "TopK",
    "Units",
    "merge",
]
