"""Noised batches: what calibration, recovery and evaluation feed to a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pruning.data.conditioning import Conditioner
from pruning.data.images import ImageData
from pruning.data.noise import noise_and_target, num_train_timesteps
from pruning.data.seeding import LATENT, NOISE, TIMESTEP, indexed_noise, sample_generator
from pruning.errors import PruningError
from pruning.models.families import denoiser_call, null_class

Path = tuple[str | int, ...]
"""Where an argument is in a call: keys of mappings and positions in lists."""


@dataclass(frozen=True)
class NoisedBatch:
    """One denoiser call and what it should answer.

    Attributes:
        call: Keyword arguments of the denoiser.
        target: (B, C, H, W), float32; None where only the dense model's own answer is known.
        bucket: Timestep bucket; 0 is the least noise.
        sample_ids: (B,) int64, rows of the data set.
        timesteps: (B,), as handed to the model, or to the scheduler.
        branches: Which branch of guidance each row is, where that is known.
        read: The model's output -> what `target` is of; None: the prediction, as `pruning.models.denoise` returns it.
        exact: Where arguments are that keep their type whatever that of the model is.
    """

    call: dict[str, Any]
    target: Tensor | None
    bucket: int
    sample_ids: Tensor
    timesteps: Tensor
    branches: tuple[int, ...] | None = None
    read: Callable[[Any], Tensor] | None = None
    exact: Collection[Path] = ()


def check_buckets(buckets: int, total: int) -> None:
    """Raise PruningError if there are more buckets than training timesteps, or none."""
    if not 1 <= buckets <= total:
        raise PruningError(
            f"timestep_buckets {buckets}: must be 1 to {total}, the number of training timesteps"
        )


def bucket_edges(total: int, buckets: int) -> list[int]:
    """Return where T equal parts of ``[0, total)`` begin, ``ceil(k total / T)``, and last `total`.

    So position p is in part ``p T // total``.
    """
    return [-(-part * total // buckets) for part in range(buckets + 1)]


def bucket_timesteps(indices: Sequence[int], total: int, buckets: int, seed: int) -> Tensor:
    """Return one timestep per sample index and bucket, uniform within the bucket.

    Returns:
        int64 (B, T); entry (i, k) lies in ``[ceil(k total / T), ceil((k + 1) total / T))``.
    """
    edges = torch.tensor(bucket_edges(total, buckets))
    width = edges[1:] - edges[:-1]
    draws = [
        torch.rand(buckets, generator=sample_generator(seed, i, TIMESTEP), dtype=torch.float64)
        for i in indices
    ]
    return edges[:-1] + (torch.stack(draws) * width).long().clamp(max=width - 1)


@dataclass(frozen=True)
class NoisedBatches:
    """Batches that can be gone through again and again, with the same content each time.

    Attributes:
        make: Starts going through them anew.
        num_train_timesteps: Upper end of the timesteps.
        timestep_buckets: T.
        has_targets: Whether the batches say what the model should answer.
        rows: How many rows all batches have.
    """

    make: Callable[[], Iterable[NoisedBatch]]
    num_train_timesteps: int
    timestep_buckets: int
    has_targets: bool = True
    rows: int = 0

    def __iter__(self) -> Iterator[NoisedBatch]:
        return iter(self.make())

    @classmethod
    def joined(cls, parts: Sequence[NoisedBatches]) -> NoisedBatches:
        """Return the batches of several, of the same timesteps and buckets, one after the other."""
        rows = sum(part.rows for part in parts)
        return replace(parts[0], make=lambda: chain.from_iterable(parts), rows=rows)


def noised_batches(
    data: ImageData,
    conditioner: Conditioner,
    scheduler: Any,
    *,
    indices: Sequence[int] | Tensor,
    batch_size: int,
    timestep_buckets: int,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    conditional: bool = True,
) -> NoisedBatches:
    """Return every chunk of samples once at every timestep bucket, from the least noise to the most.

    A sample has the *same* image and the same noise in every bucket, which the stability of sinks needs, and its
    timestep is drawn inside the bucket. All draws are seeded by (seed, sample index): neither the batch size nor
    the order of `indices` changes them.

    Args:
        data: Images.
        conditioner: Turns them into inputs of the model.
        scheduler: The model's diffusers scheduler; not changed.
        indices: Rows of `data`.
        batch_size: Samples per call.
        timestep_buckets: T.
        seed: Seed of the run.
        device: Where the calls go.
        dtype: Floating point type of the calls; noising is done in float32.
        conditional: With the images' labels or captions; else as guidance asks a model without: with the label that
            stands for no class, and empty captions.

    Raises:
        PruningError: On impossible sizes or rows, before the first batch is made.
    """
    rows = [int(i) for i in indices]
    if batch_size < 1:
        raise PruningError(f"batch_size {batch_size} must be at least 1")
    if not rows:
        raise PruningError(f"{data.name}: no images asked; give at least one index")
    data.check_enough(max(rows) + 1)
    total = num_train_timesteps(scheduler)
    check_buckets(timestep_buckets, total)

    def make() -> Iterator[NoisedBatch]:
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            latent = [sample_generator(seed, i, LATENT) for i in chunk]
            captions = data.captions(chunk) if conditional else [""] * len(chunk)
            x0, conditioning = conditioner(data.images(chunk), data.labels(chunk), captions, latent)
            if not conditional and "class_labels" in conditioning:
                conditioning["class_labels"].fill_(null_class(conditioner.model))
            x0 = x0.to(device, torch.float32)
            conditioning = {name: move(value, device, dtype) for name, value in conditioning.items()}
            noise = indexed_noise(chunk, x0.shape[1:], seed, NOISE).to(device)
            timesteps = bucket_timesteps(chunk, total, timestep_buckets, seed).to(device)
            for bucket in range(timestep_buckets):
                x_t, target, model_t = noise_and_target(scheduler, x0, noise, timesteps[:, bucket])
                yield NoisedBatch(
                    call=denoiser_call(conditioner.model, x_t.to(dtype), model_t, conditioning),
                    target=target,
                    bucket=bucket,
                    sample_ids=torch.tensor(chunk),
                    timesteps=model_t,
                )

    return NoisedBatches(make, total, timestep_buckets, rows=len(rows) * timestep_buckets)


def move(
    value: Any,
    device: torch.device | str,
    dtype: torch.dtype | None,
    exact: Collection[Path] = (),
    path: Path = (),
) -> Any:
    """Move call arguments, entry by entry.

    Floating point tensors of two or more dimensions also take `dtype`, if it is given; what has fewer are times and
    other numbers, which keep the type that they have, as does what is at a path of `exact`.
    """
    if isinstance(value, Tensor):
        cast = dtype is not None and value.is_floating_point() and value.ndim > 1 and path not in exact
        return value.to(device, dtype) if cast else value.to(device)
    if isinstance(value, Mapping):
        return {name: move(entry, device, dtype, exact, (*path, name)) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [move(entry, device, dtype, exact, (*path, k)) for k, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    return value
