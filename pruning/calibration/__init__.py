"""What the model does on data.

`passes` run the model over data (`driver`, `calibrator`) for a set of statistics (`observer`; one file per family in
`statistics`), which look in different ways (`seeing`): at rows that enter a module (`rows`), at `attention`, at
gradients, blocks or experts. Rows may be weighted by how their tokens are attended to (`sinks`); inside experts
`routing` says whose they are and how much they count. `removal` measures sets of blocks by themselves, outside of this.

Groups are measured in as many `rounds` as there is memory for. Symmetric sums grow as a `triangle`; what is `kept` of a
round goes into a `store`, a folder of `tensors`, and is read through `views`. For gradients blocks run again
(`checkpointing`).

``stats.values[place][name]`` are float64 sums. A place is a slice that is read (`PrunableGroup.consumer_key`), an
attention module, a block, or a group; the files of `statistics` say what is summed there, and in which shape. At every
place ``samples`` (T,) counts the rows of the denoiser's batches by timestep bucket (0 is the least noise).

Statistics of rows and effects have variants ``<name>@<variant>``, for those of `VARIANTS` that are asked for; `view`
puts them in the plain ones' place.
"""

from pruning.calibration import statistics as statistics  # fills STATISTICS
from pruning.calibration.calibrator import Calibrator as Calibrator
from pruning.calibration.context import sum_bytes as sum_bytes
from pruning.calibration.driver import SamplingRun as SamplingRun
from pruning.calibration.hooks import bypassed as bypassed
from pruning.calibration.observer import STATISTICS as STATISTICS
from pruning.calibration.observer import VARIANTS as VARIANTS
from pruning.calibration.observer import Observer as Observer
from pruning.calibration.observer import find as find
from pruning.calibration.observer import register as register
from pruning.calibration.passes import calibrate as calibrate
from pruning.calibration.passes import first_pass as first_pass
from pruning.calibration.passes import needs_first_pass as needs_first_pass
from pruning.calibration.removal import OutputChange as OutputChange
from pruning.calibration.rounds import is_ample as is_ample
from pruning.calibration.sampler_weights import sampler_weights as sampler_weights
from pruning.calibration.sinks.stability import FirstPass as FirstPass
from pruning.calibration.store import load_stats as load_stats
from pruning.calibration.store import save_stats as save_stats
from pruning.calibration.views import view as view
