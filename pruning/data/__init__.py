"""Data sets -> images -> noised batches: model call arguments, target and timestep bucket."""

from pruning.data.batches import NoisedBatch, NoisedBatches, bucket_of, bucket_timesteps, noised_batches
from pruning.data.conditioning import TEXT_ENCODERS, Conditioner, conditioner, encode_latents
from pruning.data.digits import open_digits
from pruning.data.images import ImageData, UnreadableRow
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
    "conditioner",
    "encode_latents",
    "indexed_noise",
    "is_flow",
    "noise_and_target",
    "noised_batches",
    "num_train_timesteps",
    "open_digits",
    "open_images",
    "sample_generator",
]
