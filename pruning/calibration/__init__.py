"""What the model does on data.

`passes` run the model over data (`driver`, `calibrator`) for a set of statistics (`observer`; one file per family in
`statistics`), which look in different ways (`seeing`): at rows that enter a module (`rows`), at `attention`, at
gradients or blocks. Rows may be weighted by how their tokens are attended to (`sinks`).

``stats.values[place][name]`` are float64 sums. A place is a slice that is read (`PrunableGroup.consumer_key`), an
attention module, a block, or a group. T timestep buckets (0 is the least noise), G units, H heads, M keys; P columns
and C rows of the consumer's weight (unfolded for convolutions), u = P / G columns per unit.

==================  ============  ==============================================  ============  =========  ============
name                shape         sum of                                          divide by     place      file
==================  ============  ==============================================  ============  =========  ============
samples             (T,)          1 per row of the denoiser's batch                             all        calibrator
row_weight          (T,)          w, the timestep weight of a consumer's row                    consumer   moments
input_sum           (T, P)        w x                                             row_weight    consumer   moments
input_sq            (P,)          w x^2                                           row_weight    consumer   moments
input_unit_moment   (G, u, u)     w x_g x_g^T                                     row_weight    consumer   moments
input_moment        (P, P)        w x x^T                                         row_weight    consumer   moments
taylor              (G,)          w |z|, z the effect on the data loss            samples       consumer   effects
probe_diag          (G,)          w z^2, z the effect on the output               samples       consumer   effects
output_sensitivity  (C, C)        w q q^T, q = d<v, eps>/dy at its output         samples       consumer   sensitivity
diff_pruning        (G,)          (over weights: |w sum_{n,t} dL_t/dw|)           samples       group      diff_pruning
block_change        (1,)          w |eps - eps without the block|^2               samples       block      blocks
block_cosine        (1,)          1 - cos(x_in, x_out)                            samples       block      blocks
key_mass            (T, H, M)     m_j, the mean attention to key j                samples       attention  attention
sink_mass           (T, H)        m on the sink set                               samples       attention  attention
max_key_mass        (T, H)        largest m_j                                     samples       attention  attention
sink_indicator      (T, M)        soft indicator s_j                              samples       attention  attention
==================  ============  ==============================================  ============  =========  ============

Statistics of rows and effects have variants ``<name>@<variant>``, for those of `VARIANTS` that are asked for; `view`
puts them in the plain ones' place.
"""

from pruning.calibration import statistics  # fills STATISTICS
from pruning.calibration.calibrator import Calibrator
from pruning.calibration.context import sum_bytes
from pruning.calibration.driver import SamplingRun
from pruning.calibration.hooks import bypassed
from pruning.calibration.observer import STATISTICS, VARIANTS, Observer, find, register
from pruning.calibration.passes import calibrate, first_pass, needs_first_pass
from pruning.calibration.sampler_weights import sampler_weights
from pruning.calibration.sinks.stability import FirstPass
from pruning.calibration.store import load_stats, save_stats, view

__all__ = [
    "STATISTICS",
    "VARIANTS",
    "Calibrator",
    "FirstPass",
    "Observer",
    "SamplingRun",
    "bypassed",
    "calibrate",
    "find",
    "first_pass",
    "load_stats",
    "needs_first_pass",
    "register",
    "sampler_weights",
    "save_stats",
    "statistics",
    "sum_bytes",
    "view",
]
