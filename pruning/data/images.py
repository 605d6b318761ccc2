"""A set of images with optional labels and captions, decoded when asked for."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import PruningError

logger = logging.getLogger(__name__)

Indices = Sequence[int] | Tensor

DARK = 0.08
"""Of white: just above 4095 of 65535, where 12 bits end, and what resizing adds."""


class UnreadableRow(PruningError):
    """A row of the data that is broken: mending it is no change of the experiment."""


@dataclass(frozen=True)
class ImageData:
    """Images of one shape, with labels and captions where the source has them.

    Attributes:
        name: What it is, for messages and reports, e.g. ``"digits[train]"``.
        shape: ``(C, H, W)`` of every image.
        length: Number of images.
        fetch: Index -> one float32 image in [-1, 1] of `shape`.
        fetch_label: Index -> class, or None where the source has no labels.
        fetch_caption: Index -> text, or None where the source has no captions.
        class_names: Class -> name of the classes that the source tells of; None where it has no labels.
    """

    name: str
    shape: tuple[int, int, int]
    length: int
    fetch: Callable[[int], Tensor]
    fetch_label: Callable[[int], int] | None = None
    fetch_caption: Callable[[int], str] | None = None
    class_names: Mapping[int, str] | None = None

    def __len__(self) -> int:
        return self.length

    @property
    def num_classes(self) -> int | None:
        """How many classes a model of these labels has at least: the largest label and one."""
        return None if self.class_names is None else max(self.class_names, default=-1) + 1

    def images(self, indices: Indices) -> Tensor:
        """Return images, float32 in [-1, 1], shape ``(B, C, H, W)``; one that cannot be decoded is an UnreadableRow."""
        rows = self._rows(indices)
        return torch.stack([self.fetch(i) for i in rows]) if rows else torch.empty(0, *self.shape)

    def labels(self, indices: Indices) -> Tensor | None:
        """Return classes, int64, shape ``(B,)``, or None without labels."""
        if self.fetch_label is None:
            return None
        return torch.tensor([self.fetch_label(i) for i in self._rows(indices)], dtype=torch.long)

    def captions(self, indices: Indices) -> list[str] | None:
        """Return B captions, or None without captions."""
        if self.fetch_caption is None:
            return None
        return [self.fetch_caption(i) for i in self._rows(indices)]

    def check_enough(self, count: int) -> None:
        """Raise PruningError unless there are at least `count` images."""
        if count > self.length:
            raise PruningError(
                f"{self.name}: {count} images asked, but the split holds {self.length}; "
                "ask for fewer or give a larger data set"
            )

    def check_readable(self, *, labels: bool, seconds: float = 2.0) -> None:
        """Decode images, and read their labels if asked, in a fixed random order until `seconds` have passed.

        The first that cannot be read is an UnreadableRow. Warns if all are nearly black, as 12 bits are in a file of
        16.
        """
        end, brightest, looked = time.monotonic() + seconds, -1.0, 0
        for row in random.Random(0).sample(range(self.length), min(self.length, 100_000)):
            brightest, looked = max(brightest, float(self.images([row]).max())), looked + 1
            if labels:
                self.labels([row])
            if time.monotonic() > end:
                break
        if brightest < 2 * DARK - 1:
            logger.warning(
                "%s: the brightest pixel of %d images is %.0f of 255; if their files hold fewer than 16 bits in 16, "
                "store them with 8 or with full 16 bits",
                *(self.name, looked, (brightest + 1) * 127.5),
            )

    def _rows(self, indices: Indices) -> list[int]:
        rows = [int(i) for i in indices]
        for row in rows:
            if not 0 <= row < self.length:
                raise PruningError(f"{self.name}: image {row} asked; indices go from 0 to {self.length - 1}")
        return rows


CACHE_BYTES = 2**30
"""Memory for decoded images."""


def cached_images(data: ImageData) -> Callable[[Indices], Tensor]:
    """Return what reads images of `data`, decoding each once where all of them fit into `CACHE_BYTES`."""
    if len(data) * math.prod(data.shape) * 4 > CACHE_BYTES:
        return data.images
    held = torch.empty(len(data), *data.shape)
    present = torch.zeros(len(data), dtype=torch.bool)

    def read(indices: Indices) -> Tensor:
        ids = torch.as_tensor(indices, dtype=torch.long)
        missing = ids[~present[ids]].unique()
        if len(missing):
            held[missing] = data.images(missing)
            present[missing] = True
        return held[ids]

    return read
