"""Settings: each knob once, with its default, its meaning and its rules. Imports neither torch nor diffusers.

The sections of a recipe are the dataclasses that functions take. A new knob is one entry in `sections` and its use.
"""

from pruning.settings.section import (
    Knob,
    Problem,
    Section,
    fits,
    hints_of,
    is_section,
    item_section,
    knobs_of,
    type_words,
)
from pruning.settings.sections import (
    COMPENSATIONS,
    DTYPES,
    KINDS,
    WEIGHTINGS,
    Calibrate,
    Data,
    Evaluate,
    Export,
    Latency,
    Limit,
    Model,
    Prune,
    Recover,
    Score,
    SinkWeights,
    Target,
)

__all__ = [
    "COMPENSATIONS",
    "DTYPES",
    "KINDS",
    "WEIGHTINGS",
    "Calibrate",
    "Data",
    "Evaluate",
    "Export",
    "Knob",
    "Latency",
    "Limit",
    "Model",
    "Problem",
    "Prune",
    "Recover",
    "Score",
    "Section",
    "SinkWeights",
    "Target",
    "fits",
    "hints_of",
    "is_section",
    "item_section",
    "knobs_of",
    "type_words",
]
