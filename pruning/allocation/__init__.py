"""How much goes from where: predicted cost, targets and limits, and the solver that makes the plan."""

from pruning.allocation.blocks import choose_blocks
from pruning.allocation.cost import CostModel
from pruning.allocation.costs import Cost
from pruning.allocation.depth import search_depth
from pruning.allocation.latency import Curve, LatencyTable
from pruning.allocation.memory import MemoryModel, moments_of
from pruning.allocation.solver import allocate, prunable

__all__ = [
    "Cost",
    "CostModel",
    "Curve",
    "LatencyTable",
    "MemoryModel",
    "allocate",
    "choose_blocks",
    "moments_of",
    "prunable",
    "search_depth",
]
