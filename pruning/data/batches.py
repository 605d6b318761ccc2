"""Noised batches: what calibration, recovery and evaluation feed to a denoiser."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pruning.errors import PruningError, shown
from pruning.models.stored import sampled
from pruning.settings.section import fits

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


def check_buckets(buckets: int, steps: int) -> None:
    """Raise PruningError if there are more timestep buckets than sampling steps, or none."""
    if not fits(buckets, int) or not 1 <= buckets <= steps:
        raise PruningError(
            f"timestep_buckets {shown(buckets)}: must be 1 to {steps}, the number of sampling steps that are shown"
        )


def bucket_edges(total: int, buckets: int) -> list[int]:
    """Return where T equal parts of ``[0, total)`` begin, ``ceil(k total / T)``, and last `total`.

    So position p is in part ``p T // total``.
    """
    return [-(-part * total // buckets) for part in range(buckets + 1)]


@dataclass(frozen=True)
class NoisedBatches:
    """Batches that can be gone through again and again, with the same content each time.

    Attributes:
        make: Starts going through them anew.
        num_train_timesteps: Steps, which T buckets share.
        timestep_buckets: T.
        has_targets: Whether the batches say what the model should answer.
        rows: How many rows all batches have.
        batch_size: Most samples of a call.
        remake: Makes the same with another `batch_size`; None where that cannot be.
        device: Where the calls lie, if that is not where the model's weights are.
    """

    make: Callable[[], Iterable[NoisedBatch]]
    num_train_timesteps: int
    timestep_buckets: int
    has_targets: bool = True
    rows: int = 0
    batch_size: int = 1
    remake: Callable[[int], NoisedBatches] | None = None
    device: torch.device | None = None

    def __iter__(self) -> Iterator[NoisedBatch]:
        return iter(self.make())

    def digest(self) -> str:
        """Return a short hash of what they show first, whatever the batch size, if batches can be remade."""
        first = next(iter(self if self.remake is None else self.remake(1)), None)
        if first is None:
            return ""
        tensors, _ = tree_flatten([first.call, first.target, first.sample_ids, first.timesteps])
        digest = hashlib.sha256(str(first.bucket).encode())
        for number, value in enumerate(tensors):
            digest.update(
                sampled(str(number), value) if isinstance(value, Tensor) else str(type(value)).encode()
            )
        return digest.hexdigest()[:32]

    @classmethod
    def joined(cls, parts: Sequence[NoisedBatches]) -> NoisedBatches:
        """Return the batches of several, of the same timesteps and buckets, one after the other."""
        rows, largest = sum(part.rows for part in parts), max(part.batch_size for part in parts)
        joined = replace(
            parts[0], make=lambda: chain.from_iterable(parts), rows=rows, batch_size=largest, remake=None
        )
        makes = [part.remake for part in parts if part.remake is not None]
        if len(makes) < len(parts):
            return joined
        return replace(joined, remake=lambda size: cls.joined([make(size) for make in makes]))


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
