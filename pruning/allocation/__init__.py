"""How much goes from where: predicted cost, targets and limits, and the solver that makes the plan."""

from pruning.allocation.cost import CostModel
from pruning.allocation.solver import allocate, prunable

__all__ = ["CostModel", "allocate", "prunable"]
