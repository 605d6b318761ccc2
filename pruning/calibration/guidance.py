"""Rows as classifier-free guidance mixes them (SCORES.md section 3).

The guided output ``(1 - s) eps_u + s eps_c`` takes an error of both branches in the same proportion: where both have
the same Jacobian, the error of the mixed rows ``(1 - s) x_u + s x_c`` is what reaches the sample. They are mixed
before anything is summed; expanding the square instead would cancel badly. They only rank: compensation has both
branches' plain rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruning.calibration.step import MAX_BRANCHES, Step
from pruning.errors import PruningError

MAX_SCALE = 1e6
"""Far above any in use; squares of mixed rows stay finite."""


@dataclass(frozen=True)
class Guidance:
    """How a pipeline guides.

    Attributes:
        scale: s; 1 is the conditional branch alone.
        conditional: Which half of the denoiser's batch is conditional: 1 in most pipelines of diffusers, 0 in
            ``DiTPipeline`` and in `pruning.sampling`.
    """

    scale: float
    conditional: int = 1

    def check(self) -> None:
        """Raise PruningError for a value out of range."""
        if not abs(self.scale) <= MAX_SCALE:
            raise PruningError(
                f"guidance: scale is {self.scale}; it must be from -{MAX_SCALE:g} to {MAX_SCALE:g}"
            )
        if self.conditional not in (0, 1):
            raise PruningError(
                f"guidance: conditional is {self.conditional}; it must be 0 or 1, the half of the batch"
            )

    def mix(self, x: Tensor, step: Step, owner: Tensor, where: str) -> tuple[Tensor, Step, Tensor]:
        """Return the mixed rows of an input (S, ...), the step of one branch and whose rows they are.

        Raises:
            PruningError: If the denoiser's call does not hold two branches.
        """
        branches = 1 + max(key % MAX_BRANCHES for key in step.keys)
        if branches != 2:
            raise PruningError(
                f"{where}: guided rows need the conditional and the unconditional branch in one call of the denoiser, "
                f"which holds {branches} branch(es); generate with guidance, or leave the variant 'guided' out (a "
                "guidance-distilled model has one branch)"
            )
        halves = x.chunk(2)
        conditional, unconditional = halves[self.conditional], halves[1 - self.conditional]
        count = len(step.keys) // 2
        one = Step(
            step.samples[:count],
            step.keys[:count],
            step.timesteps[:count],
            step.buckets[:count],
            step.weights[:count],
        )
        return (1 - self.scale) * unconditional + self.scale * conditional, one, owner[: len(owner) // 2]
