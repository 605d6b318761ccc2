"""What matters: one file a criterion, found by `pkgutil`; a new file is a new criterion."""

from pruning.importance.base import CRITERIA as CRITERIA
from pruning.importance.base import Criterion as Criterion
from pruning.importance.base import check_kinds as check_kinds
from pruning.importance.base import criterion as criterion
from pruning.importance.base import needs_of as needs_of
from pruning.importance.base import score as score
from pruning.importance.base import single_changes as single_changes
from pruning.importance.diagnostics import DIAGNOSTIC_NEEDS as DIAGNOSTIC_NEEDS
from pruning.importance.diagnostics import head_diagnostics as head_diagnostics
from pruning.registry import import_submodules

import_submodules(__name__, list(__path__))
