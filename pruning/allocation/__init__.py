"""How much goes from where: predicted cost, targets and limits, and the solver that makes the plan."""

from pruning.allocation.blocks import choose_blocks
from pruning.allocation.cost import CostModel
from pruning.allocation.depth import search_depth
from pruning.allocation.solver import allocate, prunable

__all__ = ["CostModel", "allocate", "choose_blocks", "prunable", "search_depth"]
