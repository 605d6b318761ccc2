"""Sink statistics of the attention modules of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.report.data import RunData

SINK_INDICATOR = 0.5  # s >= 1/2 makes a key a sink (docs/scores.md section 2)
SINK_MASS_FLOOR = 0.05  # below this mass on sink keys a site is said to have no sinks


@dataclass(frozen=True)
class Site:
    """Sink statistics of one attention module, means over samples; T timestep buckets, H heads, M keys.

    Attributes:
        module: Module path.
        grid: Token grid ``[rows, columns]`` if the keys are image tokens, else None.
        sink_mass: Share of a head's attention on sink keys, ``(T, H)`` in [0, 1].
        key_mass: Attention mass by key, mean over heads, ``(T, M)``; a row sums to one.
        indicator: Soft sink indicator ``(T, M)`` in [0, 1].
        relative: Key mass in units of the uniform share, which masked keys have no part in, ``(T, M)``; None: none is.
        threshold: Relative mass that makes a key a sink, rho of docs/scores.md section 2; None if the mode has none.
    """

    module: str
    grid: list[int] | None
    sink_mass: NDArray[np.float64]
    key_mass: NDArray[np.float64]
    indicator: NDArray[np.float64]
    relative: NDArray[np.float64] | None = None
    threshold: float | None = None

    @property
    def relative_mass(self) -> NDArray[np.float64]:
        """Key mass in units of the uniform share, ``(T, M)``, ``r = M * m`` where no key is masked; 1 is uniform."""
        return self.key_mass * self.key_mass.shape[1] if self.relative is None else self.relative

    @property
    def sinks(self) -> NDArray[np.bool_]:
        """Which keys are sinks at which timestep, ``(T, M)``."""
        return self.indicator >= SINK_INDICATOR

    @property
    def peak_mass(self) -> float:
        """The largest sink mass of any head and timestep."""
        return float(self.sink_mass.max())

    @property
    def peak_relative(self) -> float:
        """The largest relative mass of any key and timestep; 1 is uniform."""
        return float(self.relative_mass.max())

    @property
    def nearness(self) -> float:
        """How near the strongest key comes to being a sink, which it is from 1 on; without a threshold its mass."""
        return self.peak_relative / (self.threshold or 1.0)

    @property
    def has_sinks(self) -> bool:
        """Whether sinks take a share of attention at this site that is worth a picture."""
        return self.peak_mass >= SINK_MASS_FLOOR


def read_sites(run: RunData) -> list[Site]:
    """Read the sink statistics of a run; none if it has none."""
    if not run.data.get("sinks"):
        return []
    tensors = run.tensors(run.data["sinks"])
    detection, sites = run.entry("sink_detection"), []
    for site in run.data["sink_sites"]:
        module = site["module"]
        names = ("sink_mass", "key_mass", "sink_indicator", "relative_mass")
        found = [tensors[f"{module}/{name}"].astype(float) for name in names if f"{module}/{name}" in tensors]
        rho = detection.get("rho") or math.sqrt(site.get("visible", site["keys"]))
        threshold = rho if detection.get("mode") == "ratio" else None
        sites.append(Site(module, site["grid"], *found, threshold=threshold))
    return sites
