"""Plans that are tried for one target: mixes of criteria, of how units are ranked, and of depth and width.

`prune.candidates: n` takes the first n of the list that the recipe allows and that differ; the first is the recipe's
own. A further candidate is one line of `CANDIDATES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RECIPE = "as in the recipe"
HEADS = "attention_heads"


@dataclass(frozen=True)
class Allocation:
    """How units are ranked.

    Attributes:
        settings: What it sets in the section ``prune``.
        temper: By how much differences between groups are reduced, from 0 (not at all) to 1 (all groups are worth the
            same); see `pruning.allocation.candidates.tempered`.
        heads: What scores of attention heads are multiplied by; below 1 more heads go and fewer channels.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    temper: float = 0.0
    heads: float = 1.0


GLOBAL = {"scope": "global", "per_cost": True}
ALLOCATIONS: Mapping[str, Allocation] = {
    RECIPE: Allocation(),
    "global": Allocation(GLOBAL),
    "undivided": Allocation({"scope": "global", "per_cost": False}),
    "tempered 1/8": Allocation(GLOBAL, temper=0.125),
    "tempered 1/4": Allocation(GLOBAL, temper=0.25),
    "tempered 1/2": Allocation(GLOBAL, temper=0.5),
    "more heads": Allocation(GLOBAL, heads=0.5),
    "fewer heads": Allocation(GLOBAL, heads=2.0),
    "tempered 1/4, more heads": Allocation(GLOBAL, temper=0.25, heads=0.5),
    "uniform": Allocation({"scope": "local"}),
}
"""Ways to rank units by name; ``more heads``: more of them go."""


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
    Candidate(("probe_obs",), "global"),
    Candidate(allocation="tempered 1/4"),
    Candidate(depth=0.0),
    Candidate(allocation="tempered 1/4, more heads"),
    Candidate(depth=0.25),
    Candidate(allocation="tempered 1/8"),
    Candidate(allocation="tempered 1/4", depth=0.0),
    Candidate(allocation="tempered 1/2"),
    Candidate(allocation="undivided"),
    Candidate(("probe_obs", "probe"), "tempered 1/4"),
    Candidate(("obs",), "uniform"),
    Candidate(depth=0.5),
    Candidate(allocation="more heads"),
    Candidate(allocation="fewer heads"),
    Candidate(allocation="uniform"),
    Candidate(("probe",), "tempered 1/2"),
    Candidate(("obs", "probe"), "global"),
    Candidate(depth=0.75),
    Candidate(("probe_obs", "taylor"), "global"),
    Candidate(("taylor",), "global"),
    Candidate(("fluctuation",), "uniform"),
    Candidate(("magnitude",), "uniform"),
)
"""All candidates, in the order in which they are tried. Up to the taylor ones none needs statistics that the default
criterion and least squares do not."""
