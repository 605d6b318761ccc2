"""What the model does on data: attention capture and one file a family of statistics.

A new statistic is one new file here that registers it (see `base`).
"""

from pruning.calibration.base import STATISTICS, VARIANTS
from pruning.calibration.calibrator import DEFAULT_QUERIES, Calibrator
from pruning.calibration.first_pass import FirstPass
from pruning.calibration.indicator import Omega, stability, token_weights
from pruning.calibration.run import (
    calibrate,
    calibrate_sampling,
    first_pass,
    first_pass_sampling,
    needs_first_pass,
)
from pruning.calibration.store import load_stats, save_stats, view
from pruning.registry import import_submodules

import_submodules(__name__, __path__)

__all__ = [
    "DEFAULT_QUERIES",
    "STATISTICS",
    "VARIANTS",
    "Calibrator",
    "FirstPass",
    "Omega",
    "calibrate",
    "calibrate_sampling",
    "first_pass",
    "first_pass_sampling",
    "load_stats",
    "needs_first_pass",
    "save_stats",
    "stability",
    "token_weights",
    "view",
]
