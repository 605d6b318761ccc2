"""Which keys are sinks, how stable they are, and what that makes a token's weight (SCORES.md section 2)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pruning.calibration.streaming import SinkSums
from pruning.errors import PruningError

MODES = ("ratio", "paper", "hard")
MIN_KEYS = 8
"""With fewer visible keys than this no key is called a sink."""
MIN_INDICATOR = 0.01
"""A token whose indicator is at or below this keeps the weight 1 exactly."""
LAMBDAS = (-100.0, 1.0)
"""From weighing a sink a hundredfold more to dropping it; above 1 its rows would count again, with the sign changed."""
MIN_ENERGY = 0.01
"""Stability is meaningless where the mean squared indicator is below this."""


@dataclass(frozen=True)
class Omega:
    """How sinks are told and how their tokens are weighted.

    ``omega = 1 - s [lambda_unstable (1 - phi) + lambda_stable phi]``: (0, 0) off; (1, 1) drops every sink, (1, 0)
    the unstable ones, (0, 1) the stable ones; (-1, -1) doubles them.

    Attributes:
        lambda_unstable: Weight taken off a sink that comes and goes.
        lambda_stable: Weight taken off a sink that stays.
        alpha: Steepness of the soft indicator.
        rho: Relative mass at which the indicator is one half; None for sqrt(M).
        mode: ``ratio``: sigmoid(alpha (ln r - ln rho)); ``paper``: sigmoid(alpha (mass - mean - k std)), mass summed
            over the site's heads and queries (arXiv 2602.17664, released code, which uses alpha = 5, k = 2); ``hard``:
            1 where the head-mean mass exceeds its mean over keys by more than epsilon (the paper's figure).
        deviations: k of the mode ``paper``.
        epsilon: Of the mode ``hard``.
        seed: Of the permutations.
        kappa: Influence weighs a row ``1 + kappa`` times what later attention broadcasts of its token.
    """

    lambda_unstable: float = 1.0
    lambda_stable: float = 0.0
    alpha: float = 4.0
    rho: float | None = None
    mode: str = "ratio"
    deviations: float = 2.0
    epsilon: float = 0.05
    seed: int = 0
    kappa: float = 1.0

    def check(self) -> None:
        """Raise PruningError for a value out of range."""
        if self.mode not in MODES:
            raise PruningError(f"omega: unknown mode {self.mode!r}; valid: {', '.join(MODES)}")
        if not self.alpha > 0:
            raise PruningError(f"omega: alpha is {self.alpha}; it must be positive")
        if self.rho is not None and not self.rho > 0:
            raise PruningError(f"omega: rho is {self.rho}; it must be positive, or null for sqrt(M)")
        if not (math.isfinite(self.kappa) and self.kappa >= 0):
            raise PruningError(f"omega: kappa is {self.kappa}; it must be at least 0")
        least, most = LAMBDAS
        for name in ("lambda_unstable", "lambda_stable"):
            if not least <= (value := getattr(self, name)) <= most:
                raise PruningError(
                    f"omega: {name} is {value}; it must be in [{least:g}, {most:g}]: 1 drops sinks, 0 leaves them, -1 "
                    "doubles them"
                )
        for name in ("deviations", "epsilon"):
            if not math.isfinite(value := getattr(self, name)):
                raise PruningError(f"omega: {name} is {value}; it must be finite")

    @property
    def needs_stability(self) -> bool:
        """Whether the weights depend on stability, and so on a first pass."""
        return self.lambda_unstable != self.lambda_stable

    def indicator_settings(self) -> dict[str, float | str | None]:
        """Return what the first pass depends on: everything but the lambdas, kappa and the seed."""
        late = ("lambda_unstable", "lambda_stable", "kappa", "seed")
        return {k: v for k, v in asdict(self).items() if k not in late}


def relative_mass(sums: SinkSums) -> Tensor:
    """Return r_j = sum_i A_ij / sum_i (V_ij / M_i), (B, H, M): 1 for an indifferent head, 0 for a masked key."""
    if sums.expected is None:
        return sums.mass * sums.mass.shape[-1]
    hidden = sums.expected <= 0
    return torch.where(hidden, 0.0, sums.mass / sums.expected.masked_fill(hidden, 1.0))


def soft_indicator(sums: SinkSums, omega: Omega) -> Tensor:
    """Return the soft sink indicator s of every key from the head mean, (B, M) float64 in [0, 1].

    Zero for masked keys, and everywhere in a sample with fewer than `MIN_KEYS` visible keys.
    """
    keys = sums.mass.shape[-1]
    if sums.expected is None:
        shown = torch.ones_like(sums.mass[:, 0], dtype=torch.bool)
    else:
        shown = (sums.expected > 0).any(1)  # (B, M)
    visible = shown.sum(-1, keepdim=True)  # (B, 1)
    if omega.mode == "ratio":
        ratio = relative_mass(sums).mean(1)
        rho = (
            visible.double().sqrt()
            if omega.rho is None
            else torch.full_like(visible, omega.rho, dtype=torch.float64)
        )
        s = torch.sigmoid(omega.alpha * (ratio.log() - rho.log()))
    elif omega.mode == "paper":
        mass = sums.mass.sum(1) * sums.total
        s = torch.sigmoid(omega.alpha * (mass - mass.mean(-1, keepdim=True) - omega.deviations * _std(mass)))
    else:
        s = (sums.mass.mean(1) > 1 / keys + omega.epsilon).double()
    return torch.where(shown & (visible >= MIN_KEYS), s, 0.0)


def _std(mass: Tensor) -> Tensor:
    return mass.std(-1, keepdim=True, correction=0)


def stability(mean: Tensor, mean_square: Tensor) -> Tensor:
    """Return phi = (E s)^2 / E s^2 over timesteps, in [1/T, 1]; 0 where s was never above 0.

    1 for a sink that is equally there at every timestep, 1/T for one that is there at a single one. See
    `MIN_ENERGY` for where it means something.
    """
    never = mean_square <= 0
    return torch.where(never, 0.0, mean.square() / mean_square.masked_fill(never, 1.0)).clamp(0.0, 1.0)


def sink_weight(phi: Tensor, omega: Omega) -> Tensor:
    """Return lambda_unstable (1 - phi) + lambda_stable phi, what a sink of stability phi loses."""
    return omega.lambda_unstable * (1 - phi) + omega.lambda_stable * phi


def token_weights(s: Tensor, phi: Tensor, omega: Omega) -> Tensor:
    """Return omega = 1 - s [lambda_unstable (1 - phi) + lambda_stable phi]; exactly 1 where s <= `MIN_INDICATOR`."""
    return torch.where(s > MIN_INDICATOR, 1 - s * sink_weight(phi, omega), 1.0)
