"""Where attention goes, by head, key and timestep bucket (docs/scores.md section 1).

All are sums over samples, each sample's value being a mean over its (valid, looked-at) queries; H heads of the
module, M keys, T timestep buckets. Divide by ``samples`` for means.

- ``key_mass`` (T, H, M): column mass m_j = mean_i A_ij; the keys sum to 1.
- ``sink_mass`` (T, H): mass on the sink set S of the sample, which the head mean defines.
- ``max_key_mass`` (T, H): the largest m_j.
- ``relative_mass`` (T, M): r_j, the mass of a key in units of the even share, mean over heads.
- ``sink_indicator`` (T, M): the soft indicator s_j.
- ``visible_keys`` (T,): how many keys are not masked.
"""

from __future__ import annotations

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import Attention
from pruning.calibration.sinks.detection import relative_mass, visible_keys

register(
    "key_mass", Observer(Attention(), lambda one: one.sums.mass, lambda at: (at.heads, at.keys), by="bucket")
)
register(
    "max_key_mass",
    Observer(Attention(), lambda one: one.sums.mass.amax(-1), lambda at: (at.heads,), by="bucket"),
)
register(
    "relative_mass",
    Observer(Attention(), lambda one: relative_mass(one.sums).mean(1), lambda at: (at.keys,), by="bucket"),
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
register(
    "visible_keys",
    Observer(Attention(), lambda one: visible_keys(one.sums).double().sum(-1), lambda _: (), by="bucket"),
)
