"""Rows as classifier-free guidance mixes them (docs/scores.md section 3).

The guided output ``(1 - s) eps_u + s eps_c`` takes an error of both branches in the same proportion: where both have
the same Jacobian, the error of the mixed rows ``(1 - s) x_u + s x_c`` is what reaches the sample. They are mixed
before anything is summed; expanding the square instead would cancel badly. They only rank: compensation has both
branches' plain rows.
"""

from __future__ import annotations

from torch import Tensor

from pruning.calibration.step import MAX_BRANCHES, Step
from pruning.errors import PruningError


def mixed(
    x: Tensor, step: Step, row_of: Tensor, where: str, *, scale: float, conditional: int
) -> tuple[Tensor, Step, Tensor]:
    """Return the mixed rows of an input (S, ...), the step of one branch, and to which of its rows they belong.

    Args:
        x: The input.
        step: The denoiser's call.
        row_of: To which of the step's rows each of the S belongs.
        where: What the input is, for messages.
        scale: s; 1 is the conditional branch alone.
        conditional: Which half of the call is conditional.

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
    halves, count = x.chunk(2), len(step.keys) // 2
    one = Step(
        step.samples[:count],
        step.keys[:count],
        step.timesteps[:count],
        step.buckets[:count],
        step.weights[:count],
    )
    both = (1 - scale) * halves[1 - conditional] + scale * halves[conditional]
    return both, one, row_of[: len(row_of) // 2]
