"""Token weights omega of the current call, attention module by attention module (docs/scores.md section 2)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from pruning.calibration.attention.reading import Reading, Readings
from pruning.calibration.draws import permutations
from pruning.calibration.rows import Consumer
from pruning.calibration.sinks.stability import FirstPass
from pruning.calibration.step import Step
from pruning.errors import PruningError
from pruning.settings import SinkWeights

SINKS, INFLUENCE = {"on", "permuted"}, {"influence", "influence_permuted"}
MIN_INDICATOR = 0.01
"""A token whose indicator is at or below this keeps the weight 1 exactly."""


def needs_stability(settings: SinkWeights) -> bool:
    """Tell whether token weights depend on stability, and so on a first pass."""
    return settings.unstable != settings.stable


def weights_need_first_pass(variants: Collection[str], settings: SinkWeights) -> bool:
    """Tell whether the weights of these variants come from a first pass."""
    return (bool(SINKS & {*variants}) and needs_stability(settings)) or bool(INFLUENCE & {*variants})


def sink_weight(phi: Tensor, settings: SinkWeights) -> Tensor:
    """Return unstable (1 - phi) + stable phi, what a sink of stability phi loses."""
    return settings.unstable * (1 - phi) + settings.stable * phi


def token_weights(s: Tensor, phi: Tensor, settings: SinkWeights) -> Tensor:
    """Return omega = 1 - s [unstable (1 - phi) + stable phi]; exactly 1 where s <= `MIN_INDICATOR`."""
    return torch.where(s > MIN_INDICATOR, 1 - s * sink_weight(phi, settings), 1.0)


class TokenWeights:
    """Computes omega where attention happens, hands it out where rows enter a consumer.

    In self-attention token i is key and query: omega_i from its indicator. In cross-attention the rows are queries:
    ``omega_i = 1 - sum_{j in S} A_ij [unstable (1 - phi_j) + stable phi_j]`` with the head mean of A, which for (1, 1)
    is the content share. The variants ``influence`` weigh rows by ``omega^2 = 1 + kappa sum_{later sites} received_i``
    (see `pruning.calibration.sinks.influence`). The ``permuted`` ones move the same weights to random tokens, by one
    permutation per sample for a given number of tokens.

    Args:
        settings: How tokens are weighted.
        variants: Some of `VARIANTS`.
        first_pass: Where stability and influence come from; stability is not read if all sinks weigh the same.
        seed: Of the permutations.
    """

    def __init__(
        self, settings: SinkWeights, variants: Collection[str], first_pass: FirstPass | None, seed: int
    ) -> None:
        self._settings, self._first_pass, self._seed = settings, first_pass, seed
        self._variants = tuple(v for v in variants if v in SINKS | INFLUENCE)
        self._current: dict[str, dict[str, Tensor]] = {}

    def watch(self, readings: Readings, sites: Iterable[str]) -> None:
        """Ask to be told of the attention modules `sites`."""
        for site in sites:
            readings.on(site, self._read)

    def restart(self, step: Step) -> None:
        """Forget the weights of the last call of the denoiser."""
        self._current.clear()

    def _read(self, reading: Reading, step: Step, row_of: Tensor) -> None:
        """Compute the weights of one attention call."""
        keys = [step.keys[i] for i in row_of.tolist()]
        samples = [step.samples[i] for i in row_of.tolist()]
        found = {}
        if SINKS & {*self._variants}:
            found["on"] = self._of_sinks(reading, keys)
        if INFLUENCE & {*self._variants}:
            found["influence"] = self._of_influence(reading, keys)
        for control, name in (("permuted", "on"), ("influence_permuted", "influence")):
            if control in self._variants:
                order = permutations(self._seed, samples, found[name].shape[1]).to(found[name].device)
                found[control] = found[name].gather(1, order)
        self._current[reading.call.path] = {v: found[v] for v in self._variants}

    def _of_sinks(self, reading: Reading, keys: list[int]) -> Tensor:
        """Return omega of the sinks, (B, N)."""
        s = reading.indicator
        phi = torch.zeros_like(s)
        if self._first_pass is not None and needs_stability(self._settings):
            phi = self._first_pass.stability(reading.call.path, keys, s.shape[-1]).to(s)
        if reading.call.cross:
            lost = torch.where(reading.sinks, sink_weight(phi, self._settings), 0.0)
            return 1 - reading.attended(lost)
        return token_weights(s, phi, self._settings)

    def _of_influence(self, reading: Reading, keys: list[int]) -> Tensor:
        """Return the root of the influence weight, (B, N)."""
        assert self._first_pass is not None, "the calibrator asks for it when this variant is wanted"
        tokens = reading.call.query.shape[-2]
        influence = self._first_pass.influence(reading.call.path, keys, tokens)
        return (1 + self._settings.kappa * influence).sqrt().to(reading.call.query.device)

    def at(self, place: Consumer, x: Tensor) -> dict[str, Tensor]:
        """Return omega (S, N) by variant for an input of a consumer; empty where rows have no weights.

        Raises:
            PruningError: If the attention module has not run before, or saw other tokens.
        """
        if place.site is None or not self._variants:
            return {}
        if place.site not in self._current:
            raise PruningError(
                f"{place.path!r}: the attention module {place.site!r}, whose sinks weight these rows, has not run "
                "before them; leave the weightings out for this model"
            )
        found, rows, tokens = self._current[place.site], x.shape[0], place.num_tokens(x)
        for omega in found.values():
            if tuple(omega.shape) != (rows, tokens):
                raise PruningError(
                    f"{place.path!r} sees {rows} x {tokens} rows, but the attention module {place.site!r}, whose sinks "
                    f"weight them, saw {tuple(omega.shape)} tokens; switch chunked feed-forward off, and leave the "
                    "weightings out where text and image share one attention"
                )
        return found
