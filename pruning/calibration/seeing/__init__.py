"""Ways of seeing a running model; one file each says what a view is, at what places, and how it comes about.

==============================  ================  ==========================================================  =========
way of seeing                   place             a view shows                                                measure of
==============================  ================  ==========================================================  =========
`Input()`                       consumer          `Rows` that enter it                                        the sum
`InputGradient(loss)`           consumer          `Effects` z of its units on the loss                        the sum
`OutputGradient(loss)`          consumer          `Rows` of the gradient by its output                        the sum
`WeightGradient(threshold)`     group             `Owned`: weights and the gradients summed over the run      the end
`Attention()`                   attention module  a `Reading` of one call                                     samples
`Block()`, `Ablation()`         block             the `Change` of its input, or, without it, of the output    samples
==============================  ================  ==========================================================  =========
"""

from pruning.calibration.seeing.attention import Attention, Site
from pruning.calibration.seeing.blocks import Ablation, Block, Change
from pruning.calibration.seeing.gradients import Effects, InputGradient, OutputGradient
from pruning.calibration.seeing.inputs import Image, Input, Rows
from pruning.calibration.seeing.weights import Owned, WeightGradient

__all__ = [
    "Ablation",
    "Attention",
    "Block",
    "Change",
    "Effects",
    "Image",
    "Input",
    "InputGradient",
    "OutputGradient",
    "Owned",
    "Rows",
    "Site",
    "WeightGradient",
]
