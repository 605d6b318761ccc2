"""What the model does on data.

`passes` run the model over data (`driver`, `calibrator`) for a set of statistics (`observer`; one file per family in
`statistics`), which look in different ways (`seeing`): at rows that enter a module (`rows`), at `attention`, at
gradients or blocks. Rows may be weighted by how their tokens are attended to (`sinks`).

``stats.values[place][name]`` are float64 sums. A place is a slice that is read (`PrunableGroup.consumer_key`), an
attention module, a block, or a group; the files of `statistics` say what is summed there, and in which shape. At every
place ``samples`` (T,) counts the rows of the denoiser's batches by timestep bucket (0 is the least noise).

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
