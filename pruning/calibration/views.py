"""Statistics as one weighting of the rows sees them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from pruning.errors import PruningError
from pruning.on_demand import OnDemand, by_rows
from pruning.settings import WEIGHTINGS
from pruning.types import CalibrationStats


def view(stats: CalibrationStats, weighting: str) -> CalibrationStats:
    """Return the statistics as one weighting of the rows sees them, so that criteria know nothing of weightings.

    Args:
        stats: What calibration gathered.
        weighting: One of `pruning.settings.WEIGHTINGS`.

    Returns:
        Statistics in which each name stands for its variant where there is one, and else for the plain sum.

    Raises:
        PruningError: For an unknown weighting, or one that was not gathered.
    """
    gathered = list(stats.meta.get("variants", []))
    if weighting not in WEIGHTINGS:
        raise PruningError(f"unknown weighting {weighting!r}; valid: {', '.join(WEIGHTINGS)}")
    if weighting not in ("off", *gathered):
        have = ", ".join(["off", *gathered])
        raise PruningError(
            f"weighting {weighting!r} was not calibrated (there is: {have}); add it to the calibration's variants"
        )
    suffix = f"@{weighting}"
    values: dict[str, Mapping[str, Tensor]] = {}
    for place, found in stats.values.items():
        plain = {name: name for name in found if "@" not in name}
        own = {name.removesuffix(suffix): name for name in found if name.endswith(suffix)}
        values[place] = OnDemand({**plain, **own}, found.__getitem__, partial(by_rows, found))
    return CalibrationStats(values, {**stats.meta, "view": weighting})
