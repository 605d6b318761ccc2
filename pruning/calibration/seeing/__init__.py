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
`ExpertOutput()`                experts           what one has `Produced`                                     the sum
`ExpertEffect(loss)`            experts           `Effects` z of each on the loss                             the sum
`LayerInput()`                  experts           w_tau of each token that enters their layer                 the sum
==============================  ================  ==========================================================  =========
"""

from pruning.calibration.seeing.attention import Attention as Attention
from pruning.calibration.seeing.attention import Site as Site
from pruning.calibration.seeing.blocks import Ablation as Ablation
from pruning.calibration.seeing.blocks import Block as Block
from pruning.calibration.seeing.blocks import Change as Change
from pruning.calibration.seeing.experts import ExpertEffect as ExpertEffect
from pruning.calibration.seeing.experts import ExpertOutput as ExpertOutput
from pruning.calibration.seeing.experts import LayerInput as LayerInput
from pruning.calibration.seeing.experts import Produced as Produced
from pruning.calibration.seeing.gradients import Effects as Effects
from pruning.calibration.seeing.gradients import InputGradient as InputGradient
from pruning.calibration.seeing.gradients import OutputGradient as OutputGradient
from pruning.calibration.seeing.inputs import Image as Image
from pruning.calibration.seeing.inputs import Input as Input
from pruning.calibration.seeing.inputs import Rows as Rows
from pruning.calibration.seeing.weights import Owned as Owned
from pruning.calibration.seeing.weights import WeightGradient as WeightGradient
