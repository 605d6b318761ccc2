"""sinkprune: attention-sink-aware structured pruning for diffusers UNets and DiTs.

Importing this package is cheap: torch and diffusers are imported when something of theirs is first asked for.
It lets plain ``from_pretrained`` load pruned checkpoints, as soon as diffusers' models are imported, before or
after this package; `disable_hooks` takes that back.
"""

from typing import TYPE_CHECKING

from pruning import hook
from pruning.hook import disable_hooks as disable_hooks
from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.allocation import CostModel as CostModel
    from pruning.calibration import Calibrator as Calibrator
    from pruning.checkpoint import save as save
    from pruning.data import open_images as open_images
    from pruning.errors import PruningError as PruningError
    from pruning.groups import find_groups as find_groups
    from pruning.importance import score as score
    from pruning.interface import allocate as allocate
    from pruning.interface import calibrate as calibrate
    from pruning.interface import choose_blocks as choose_blocks
    from pruning.interface import image_calls as image_calls
    from pruning.interface import load as load
    from pruning.interface import modulation_forms as modulation_forms
    from pruning.interface import noised_batches as noised_batches
    from pruning.models import example_call as example_call
    from pruning.models import load_denoiser as load_denoiser
    from pruning.models import load_meta_denoiser as load_meta_denoiser
    from pruning.recipe import Recipe as Recipe
    from pruning.recipe import load_recipe as load_recipe
    from pruning.recording import RecordedCalls as RecordedCalls
    from pruning.recording import record as record
    from pruning.recording import recorded_batches as recorded_batches
    from pruning.recovery import recover_images as recover_images
    from pruning.recovery import recover_recorded as recover_recorded
    from pruning.settings import Calibrate as Calibrate
    from pruning.settings import Depth as Depth
    from pruning.settings import Limit as Limit
    from pruning.settings import Prune as Prune
    from pruning.settings import Recover as Recover
    from pruning.settings import SinkWeights as SinkWeights
    from pruning.settings import Target as Target
    from pruning.stages import Run as Run
    from pruning.stages import run_recipe as run_recipe
    from pruning.surgery import apply_plan as apply_plan
    from pruning.surgery import compensate as compensate
    from pruning.surgery import cut_on_disk as cut_on_disk
    from pruning.surgery import mask_plan as mask_plan
    from pruning.surgery import take_low_rank as take_low_rank
    from pruning.types import CalibrationStats as CalibrationStats
    from pruning.types import PrunableGroup as PrunableGroup
    from pruning.types import PruningPlan as PruningPlan
    from pruning.types import Scores as Scores

__getattr__, __dir__ = lazy_exports(__name__, __file__)

hook.arm()
