"""What matters: one file a criterion, found by `pkgutil`; a new file is a new criterion."""

from __future__ import annotations

from pruning.importance.base import CRITERIA, Criterion, check_kinds, criterion, needs_of, score
from pruning.importance.diagnostics import DIAGNOSTIC_NEEDS, head_diagnostics
from pruning.registry import import_submodules

import_submodules(__name__, list(__path__))

__all__ = [
    "CRITERIA",
    "DIAGNOSTIC_NEEDS",
    "Criterion",
    "check_kinds",
    "criterion",
    "head_diagnostics",
    "needs_of",
    "score",
]
