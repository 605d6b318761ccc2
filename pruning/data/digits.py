"""The embedded data set: the scikit-learn digits with a fixed split."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import distribution

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.data.images import ImageData
from pruning.errors import PruningError

TEST_SHARE = 0.2
SPLIT_SEED = 20260217
"""Fixed for ever: the test digits are in nobody's training."""


@lru_cache(maxsize=1)
def _load() -> tuple[Tensor, Tensor]:
    """Return the 1,797 images, float32 in [0, 1] of shape (1797, 1, 8, 8), and their classes."""
    # The file that sklearn.datasets.load_digits reads; importing scikit-learn takes a second.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    images = torch.as_tensor(table[:, :-1], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0
    return images, torch.as_tensor(table[:, -1], dtype=torch.long)


@lru_cache(maxsize=1)
def split_indices() -> dict[str, Tensor]:
    """Return the rows of the ``train`` and ``test`` splits: a stratified fifth of every class is ``test``."""
    _, labels = _load()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        rows = (labels == digit).nonzero().flatten()
        order = torch.randperm(len(rows), generator=generator)
        is_test[rows[order[: round(TEST_SHARE * len(rows))]]] = True
    return {"train": (~is_test).nonzero().flatten(), "test": is_test.nonzero().flatten()}


def open_digits(split: str, shape: tuple[int, int, int]) -> ImageData:
    """Return the digits of one split, enlarged by bicubic interpolation.

    UCI "Optical Recognition of Handwritten Digits" (test part), 1,797 grey 8x8 images, CC BY 4.0, as shipped with
    scikit-learn.

    Args:
        split: ``"train"`` (1,437 or so) or ``"test"`` (the rest; in nobody's training); another is a PruningError.
        shape: ``(C, H, W)``, C equal channels.
    """
    splits = split_indices()
    if split not in splits:
        raise PruningError(f"data 'digits' has no split {split!r}; its splits: {', '.join(sorted(splits))}")
    images, labels = _load()
    rows = splits[split]
    enlarged = F.interpolate(images[rows], size=shape[1:], mode="bicubic", antialias=True)
    pixels = (enlarged.clamp(0, 1) * 2 - 1).expand(-1, shape[0], -1, -1).contiguous()
    classes = labels[rows].tolist()
    return ImageData(
        name=f"digits[{split}]",
        shape=shape,
        length=len(rows),
        fetch=lambda index: pixels[index],
        fetch_label=lambda index: classes[index],
        class_names={digit: str(digit) for digit in range(10)},
    )
