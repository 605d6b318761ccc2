"""The embedded digits and their fixed split."""

from __future__ import annotations

import hashlib

import pytest
import torch

from pruning.data import digits, open_images
from pruning.data.digits import split_indices
from pruning.errors import PruningError


def test_the_split_is_a_stratified_fifth_and_fixed_for_ever():
    splits = split_indices()
    train, test = set(splits["train"].tolist()), set(splits["test"].tolist())
    assert train | test == set(range(1797))
    assert not train & test
    assert (len(train), len(test)) == (1438, 359)
    labels = open_images("digits", split="test", channels=1, resolution=8).labels(range(359))
    assert labels is not None
    assert torch.bincount(labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    digest = hashlib.sha256(str(splits["test"].tolist()).encode()).hexdigest()
    assert digest.startswith("3fd5f4e25e649b98"), "published models were trained on the old split"


def test_images_are_the_originals_in_range():
    from sklearn.datasets import load_digits

    data = open_images("digits", split="train", channels=1, resolution=8)
    row = int(split_indices()["train"][5])
    original = torch.as_tensor(load_digits().images[row], dtype=torch.float32) / 8 - 1
    torch.testing.assert_close(data.images([5])[0, 0], original)
    assert data.num_classes == 10
    assert data.name == "digits[train]"


def test_enlarged_images_keep_range_and_channels():
    data = open_images("digits", split="test", channels=3, resolution=16)
    images = data.images([0, 7, 358])
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.float32
    assert float(images.min()) >= -1
    assert float(images.max()) <= 1
    assert torch.equal(images[:, 0], images[:, 2])


def test_rows_are_checked():
    data = open_images("digits", split="test", channels=1, resolution=8)
    with pytest.raises(PruningError, match=r"digits\[test\]: image 359 asked; indices go from 0 to 358"):
        data.images([0, 359])
    with pytest.raises(PruningError, match=r"400 images asked, but the split holds 359"):
        data.check_enough(400)
    data.check_enough(359)
    assert data.images([]).shape == (0, 1, 8, 8)
    assert data.captions([0]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "val"}, r"'digits' has no split 'val'; its splits: test, train"),
        ({"channels": 2}, r"channels 2: images are read as 1 \(grey\) or 3 \(RGB\)"),
        ({"resolution": 0}, r"resolution 0 must be at least 1"),
        ({"label_column": "y"}, r"no table and has no column 'y'"),
    ],
)
def test_bad_requests(changes: dict, message: str):
    with pytest.raises(PruningError, match=message):
        open_images("digits", **{"channels": 1, "resolution": 8, **changes})


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = digits._load()
    assert torch.equal(images[:, 0], torch.as_tensor(bunch.images, dtype=torch.float32) / 16.0)
    assert torch.equal(labels, torch.as_tensor(bunch.target, dtype=torch.long))
