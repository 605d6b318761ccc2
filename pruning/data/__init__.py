"""Data sets -> images -> noised batches: model call arguments, target and timestep bucket."""

from typing import TYPE_CHECKING

from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.data.batches import NoisedBatch, NoisedBatches, bucket_of, bucket_timesteps, noised_batches
    from pruning.data.conditioning import TEXT_ENCODERS, Conditioner, conditioner, encode_latents
    from pruning.data.digits import open_digits
    from pruning.data.images import ImageData, UnreadableRow
    from pruning.data.labels import check_classes, class_remarks, find_null_class
    from pruning.data.noise import is_flow, noise_and_target, num_train_timesteps
    from pruning.data.seeding import indexed_noise, sample_generator
    from pruning.data.sources import open_images

__all__ = [
    "TEXT_ENCODERS",
    "Conditioner",
    "ImageData",
    "NoisedBatch",
    "NoisedBatches",
    "UnreadableRow",
    "bucket_of",
    "bucket_timesteps",
    "check_classes",
    "class_remarks",
    "conditioner",
    "encode_latents",
    "find_null_class",
    "indexed_noise",
    "is_flow",
    "noise_and_target",
    "noised_batches",
    "num_train_timesteps",
    "open_digits",
    "open_images",
    "sample_generator",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    batches="NoisedBatch NoisedBatches bucket_of bucket_timesteps noised_batches",
    conditioning="Conditioner TEXT_ENCODERS conditioner encode_latents",
    digits="open_digits",
    images="ImageData UnreadableRow",
    labels="check_classes class_remarks find_null_class",
    noise="is_flow noise_and_target num_train_timesteps",
    seeding="indexed_noise sample_generator",
    sources="open_images",
)
