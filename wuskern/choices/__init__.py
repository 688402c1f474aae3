"""What a layer's next backward does about its weight: the choices, and the plan that has one of each. Frozen values, no state.

A row is one output unit: a row of a Linear's ``[out, in]`` weight, an output channel of a Conv2d's
``[out, in / groups, kh, kw]``, a token of an embedding. A column is one input unit: a column of a Linear's weight, an input
channel of a Conv2d's. Of a transposed weight, ``[in, out]`` as in transformers' Conv1D, rows are still output units. A token of
a choice is an element of the leading dimensions of a Linear's input, an image of a Conv2d's.
"""

from wuskern.choices.base import Choice, Units
from wuskern.choices.columns import ColumnChoice, Columns, TopColumns
from wuskern.choices.index import FixedIndex
from wuskern.choices.plan import CHOICES, DEFAULTS, DENSE, OBSERVERS, Parts, Plan, Planned, merge
from wuskern.choices.rows import (
    BIASES,
    SCOPES,
    SCORES,
    BatchRows,
    Bias,
    PerExample,
    RowChoice,
    Rows,
    RowwiseChoice,
    Scope,
    Score,
    TopK,
)
from wuskern.choices.tokens import PICKS, Pick, Tokens

__all__ = [
    "BIASES",
    "CHOICES",
    "DEFAULTS",
    "DENSE",
    "OBSERVERS",
    "PICKS",
    "SCOPES",
    "SCORES",
    "BatchRows",
    "Bias",
    "Choice",
    "ColumnChoice",
    "Columns",
    "FixedIndex",
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
    "TopColumns",
    "TopK",
    "Units",
    "merge",
]
