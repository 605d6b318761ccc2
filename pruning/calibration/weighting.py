"""Token weights omega of the current call, site by site (SCORES.md section 2)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pruning.calibration.draws import permutations
from pruning.calibration.first_pass import FirstPass
from pruning.calibration.indicator import Omega, sink_weight, token_weights
from pruning.calibration.reading import Reading
from pruning.calibration.step import Step
from pruning.errors import PruningError

SINKS, INFLUENCE = {"on", "permuted"}, {"influence", "influence_permuted"}


def need_first_pass(variants: Collection[str], omega: Omega) -> bool:
    """Tell whether these variants' weights come from a first pass."""
    return (bool(SINKS & set(variants)) and omega.needs_stability) or bool(INFLUENCE & set(variants))


class TokenWeights:
    """Computes omega where attention happens, hands it out where rows enter a consumer.

    In self-attention token i is key and query: omega_i from its indicator. In cross-attention the rows are
    queries: ``omega_i = 1 - sum_{j in S} A_ij [lambda_unstable (1 - phi_j) + lambda_stable phi_j]`` with the head
    mean of A, which for lambdas of (1, 1) is the content share. The variants ``influence`` weigh rows by ``omega^2 =
    1 + kappa sum_{later sites} received_i`` (see `pruning.calibration.influence`). The ``permuted`` ones move the same
    weights to random tokens, by one permutation a sample for a given number of tokens.

    Args:
        omega: How sinks are told and weighted.
        variants: Some of `VARIANTS`.
        first_pass: Where stability and influence come from; stability is not read if both lambdas are equal.
    """

    def __init__(self, omega: Omega, variants: Collection[str], first_pass: FirstPass | None) -> None:
        self._omega = omega
        self._variants = tuple(variants)
        self._first_pass = first_pass
        self._current: dict[str, dict[str, Tensor]] = {}

    def restart(self) -> None:
        """Forget the weights of the last call of the denoiser."""
        self._current.clear()

    def read(self, reading: Reading, step: Step, owner: Tensor) -> None:
        """Compute the weights of one attention call; `owner` (B,) says which of the step's rows its batch is."""
        keys = [step.keys[i] for i in owner.tolist()]
        samples = [step.samples[i] for i in owner.tolist()]
        found = {}
        if SINKS & set(self._variants):
            found["on"] = self._of_sinks(reading, keys)
        if INFLUENCE & set(self._variants):
            found["influence"] = self._of_influence(reading, keys)
        for control, name in (("permuted", "on"), ("influence_permuted", "influence")):
            if control in self._variants:
                order = permutations(self._omega.seed, samples, found[name].shape[1]).to(found[name].device)
                found[control] = found[name].gather(1, order)
        self._current[reading.call.path] = {v: found[v] for v in self._variants if v in found}

    def _of_sinks(self, reading: Reading, keys: list[int]) -> Tensor:
        """Return omega of the sinks, (B, N)."""
        s = reading.indicator
        phi = torch.zeros_like(s)
        if self._first_pass is not None and self._omega.needs_stability:
            phi = self._first_pass.stability(reading.call.path, keys, s.shape[-1]).to(s)
        if reading.call.cross:
            lost = torch.where(reading.sinks, sink_weight(phi, self._omega), 0.0)
            return 1 - reading.attended(lost)
        return token_weights(s, phi, self._omega)

    def _of_influence(self, reading: Reading, keys: list[int]) -> Tensor:
        """Return the root of the influence weight, (B, N)."""
        assert self._first_pass is not None, "the calibrator asks for it when this variant is wanted"
        tokens = reading.call.query.shape[-2]
        influence = self._first_pass.influence(reading.call.path, keys, tokens)
        return (1 + self._omega.kappa * influence).sqrt().to(reading.call.query.device)

    def of(self, site: str, rows: int, tokens: int, where: str) -> dict[str, Tensor]:
        """Return omega (rows, tokens) by variant for the rows that enter a consumer.

        Raises:
            PruningError: If the site has not run before, or saw other tokens.
        """
        if site not in self._current:
            raise PruningError(
                f"{where}: the attention module {site!r}, whose sinks weight these rows, has not run before them; "
                "switch the omega variants off for this model"
            )
        found = self._current[site]
        for omega in found.values():
            if tuple(omega.shape) != (rows, tokens):
                raise PruningError(
                    f"{where} sees {rows} x {tokens} rows, but the attention module {site!r}, whose sinks weight them, "
                    f"saw {tuple(omega.shape)} tokens; switch chunked feed-forward and the omega variants off"
                )
        return found
