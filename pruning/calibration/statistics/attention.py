"""Where attention goes, by head, key and timestep bucket (docs/scores.md section 1).

All are sums over samples, each sample's value being a mean over its (valid, looked-at) queries; H heads of the
module, M keys, T timestep buckets. Divide by ``samples`` for means.

- ``key_mass`` (T, H, M): column mass m_j = mean_i A_ij; the keys sum to 1.
- ``sink_mass`` (T, H): mass on the sink set S of the sample, which the head mean defines.
- ``max_key_mass`` (T, H): the largest m_j.
- ``sink_indicator`` (T, M): the soft indicator s_j.
"""

from __future__ import annotations

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import Attention

register(
    "key_mass", Observer(Attention(), lambda one: one.sums.mass, lambda at: (at.heads, at.keys), by="bucket")
)
register(
    "max_key_mass",
    Observer(Attention(), lambda one: one.sums.mass.amax(-1), lambda at: (at.heads,), by="bucket"),
)
register(
    "sink_indicator", Observer(Attention(), lambda one: one.indicator, lambda at: (at.keys,), by="bucket")
)
register(
    "sink_mass",
    Observer(
        Attention(),
        lambda one: (one.sums.mass * one.sinks[:, None]).sum(-1),
        lambda at: (at.heads,),
        by="bucket",
    ),
)
