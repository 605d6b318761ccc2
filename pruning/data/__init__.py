"""Data sets: images, labels and prompts, noise, and batches of what a denoiser is asked."""

from typing import TYPE_CHECKING

from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.data.batches import NoisedBatch as NoisedBatch
    from pruning.data.batches import NoisedBatches as NoisedBatches
    from pruning.data.images import ImageData as ImageData
    from pruning.data.images import UnreadableRow as UnreadableRow
    from pruning.data.labels import check_classes as check_classes
    from pruning.data.labels import find_null_class as find_null_class
    from pruning.data.noise import is_flow as is_flow
    from pruning.data.noise import noise_and_target as noise_and_target
    from pruning.data.noise import num_train_timesteps as num_train_timesteps
    from pruning.data.prompts import Prompts as Prompts
    from pruning.data.prompts import open_prompts as open_prompts
    from pruning.data.seeding import indexed_noise as indexed_noise
    from pruning.data.seeding import sample_generator as sample_generator
    from pruning.data.sources import open_images as open_images

__getattr__, __dir__ = lazy_exports(__name__, __file__)
