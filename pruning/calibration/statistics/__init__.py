"""What is added up: one file per family of statistics, found by `pkgutil`; a new file is a new statistic."""

from pruning.registry import import_submodules

import_submodules(__name__, __path__)
