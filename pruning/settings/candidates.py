"""Plans that are tried for one target: mixes of criteria, of how units are ranked, and of depth and width.

`prune.candidates: n` takes the first n of the list that the recipe allows and that differ; the first is the recipe's
own. A further candidate is one line of `CANDIDATES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RECIPE = "as in the recipe"
TEMPERED = "tempered"
ALLOCATIONS: Mapping[str, Mapping[str, Any]] = {
    RECIPE: {},
    "global": {"scope": "global", "per_cost": True},
    "undivided": {"scope": "global", "per_cost": False},
    TEMPERED: {"scope": "global", "per_cost": True},
    "uniform": {"scope": "local"},
}
"""How units are ranked, by name: what that sets in the section ``prune``.

``global``: all against each other by score per cost; ``undivided``: by score; ``uniform``: the same share of every
group; ``tempered``: half-way between the first and the last, see `pruning.allocation.candidates.tempered`.
"""


@dataclass(frozen=True)
class Candidate:
    """A way to a plan.

    Attributes:
        criteria: What ranks units; of several the scores are added, each divided by its sum. Empty: the recipe's own.
        allocation: One of `ALLOCATIONS`.
        depth: Share of what is freed that whole blocks free; None: as many go as scores say.
    """

    criteria: tuple[str, ...] = ()
    allocation: str = RECIPE
    depth: float | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is what the recipe says, and nothing else."""
        return self == Candidate()

    @property
    def tempers(self) -> bool:
        """Whether differences between groups are halved."""
        return self.allocation == TEMPERED

    @property
    def depth_words(self) -> str:
        """What is asked of blocks, in words."""
        if self.depth is None:
            return "by scores"
        return f"{100 * self.depth:.0f} % by blocks" if self.depth else "no blocks"

    def named(self, criterion: str) -> str:
        """Return its name, of a run with that criterion."""
        parts = [" + ".join(self.criteria or (criterion,)), self.allocation]
        return ", ".join(parts if self.depth is None else [*parts, self.depth_words])


CANDIDATES: Sequence[Candidate] = (
    Candidate(),
    Candidate(allocation=TEMPERED),
    Candidate(depth=0.0),
    Candidate(("obs", "probe"), TEMPERED),
    Candidate(depth=0.25),
    Candidate(("probe_obs", "taylor"), "global"),
    Candidate(allocation=TEMPERED, depth=0.0),
    Candidate(allocation="uniform"),
    Candidate(depth=0.5),
    Candidate(("probe_obs",), "global"),
    Candidate(("obs",), "uniform"),
    Candidate(("probe",), "global"),
    Candidate(("obs",), "undivided"),
    Candidate(depth=0.75),
    Candidate(("probe",), TEMPERED),
    Candidate(("fluctuation",), "uniform"),
    Candidate(("taylor",), "global"),
    Candidate(("magnitude",), "uniform"),
)
"""All candidates, in the order in which they are tried."""
