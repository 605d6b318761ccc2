"""What the model does on data: attention capture and one file a family of statistics.

``stats.values[group][name]`` are float64 sums. T timestep buckets (0 is the least noise), G units, H heads, M keys;
P columns and C rows of the consumer's weight (unfolded for convolutions), u = P / G columns a unit.

==================  ============  ================================================  ============  ==============
name                shape         sum of                                            divide by     file
==================  ============  ================================================  ============  ==============
samples             (T,)          1 a row of the denoiser's batch                                 calibrator
row_weight          (T,)          w, the timestep weight of a consumer's row                      moments
input_sum           (T, P)        w x                                               row_weight    moments
input_sq            (P,)          w x^2                                             row_weight    moments
input_unit_moment   (G, u, u)     w x_g x_g^T                                       row_weight    moments
input_moment        (P, P)        w x x^T                                           row_weight    moments
taylor              (G,)          w |z|, z the effect on the data loss              samples       gradients
probe               (G, G)        w z z^T, z the effect on the output               samples       gradients
probe_diag          (G,)          w z^2                                             samples       gradients
output_sensitivity  (C, C)        w q q^T, q = d<v, eps>/dy at a consumer's output    samples       sensitivity
diff_pruning        (G,)          (sum over weights of |w sum_{n,t} dL_t/dw|)       samples       diff_pruning
block_change        (1,)          w |eps - eps without the block|^2                 samples       block_effects
block_cosine        (1,)          1 - cos(x_in, x_out)                              samples       block_effects
key_mass            (T, H, M)     m_j, the mean attention to key j                  samples       sinks
key_mass_sq         (T, H, M)     mean squared attention to key j                   samples       sinks
key_mass_error      (T, H, M)     (standard error of the sum key_mass)              samples       sinks
entropy             (T, H)        entropy of the attention rows, nats               samples       sinks
sink_mass           (T, H)        m on the sink set                                 samples       sinks
max_key_mass        (T, H)        largest m_j                                       samples       sinks
sink_indicator      (T, M)        soft indicator s_j                                samples       sinks
split_energy        (H, 3)        w times energy of sink, content, their product    row_weight    split
value_ratio         (H,)          |v| of sinks over the median |v|                  its _count    split
==================  ============  ================================================  ============  ==============

Row and gradient statistics have variants ``<name>@<variant>``, for the names in `VARIANTS` that are asked for; `view`
puts them in the plain ones' place. A new statistic is one new file here that registers it (see `base`).
"""

from pruning.calibration.base import STATISTICS, VARIANTS
from pruning.calibration.calibrator import DEFAULT_QUERIES, Calibrator
from pruning.calibration.first_pass import FirstPass
from pruning.calibration.guidance import Guidance
from pruning.calibration.indicator import Omega, stability, token_weights
from pruning.calibration.instrument import bypassed
from pruning.calibration.run import (
    calibrate,
    calibrate_sampling,
    first_pass,
    first_pass_sampling,
    needs_first_pass,
)
from pruning.calibration.sampler_weights import sampler_weights
from pruning.calibration.store import load_stats, save_stats, view
from pruning.registry import import_submodules

import_submodules(__name__, __path__)

__all__ = [
    "DEFAULT_QUERIES",
    "STATISTICS",
    "VARIANTS",
    "Calibrator",
    "FirstPass",
    "Guidance",
    "Omega",
    "bypassed",
    "calibrate",
    "calibrate_sampling",
    "first_pass",
    "first_pass_sampling",
    "load_stats",
    "needs_first_pass",
    "sampler_weights",
    "save_stats",
    "stability",
    "token_weights",
    "view",
]
