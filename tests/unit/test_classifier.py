"""The small classifier whose features stand in for Inception's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eval.classifier import SmallClassifier, load_classifier, save_classifier
from pruning.data import open_images
from pruning.models import bundled
from pruning.sampling import to_uint8


@pytest.fixture
def classifier() -> SmallClassifier:
    torch.manual_seed(0)
    return SmallClassifier(widths=(4, 8, 8, 6), name="tiny").eval()


def test_bytes_and_floats_are_the_same_image(classifier: SmallClassifier):
    images = torch.randint(
        0, 256, (3, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        features = classifier.features(images)
        torch.testing.assert_close(classifier.features(images.float() / 127.5 - 1), features)
        torch.testing.assert_close(classifier(images), classifier.head(features))
    assert features.shape == (3, 6) == (3, classifier.num_features)
    assert features.dtype == torch.float32
    assert bool((features >= 0).all())
    assert classifier(images[:, :, :9, :5]).shape == (3, 10)


def test_save_and_load(classifier: SmallClassifier, tmp_path: Path):
    save_classifier(classifier, tmp_path / "c")
    loaded = load_classifier(tmp_path / "c")
    assert not loaded.training
    assert loaded.name == "tiny"
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(2, 3, 8, 8),
            r"'tiny' takes images \(B, 1, H, W\), uint8 or floating point; got torch.float32 \(2, 3, 8, 8\)",
        ),
        (torch.zeros(1, 8, 8), r"got torch.float32 \(1, 8, 8\)"),
        (
            torch.zeros(2, 1, 8, 8, dtype=torch.int64),
            r"uint8 or floating point; got torch.int64",
        ),
    ],
)
def test_bad_images(classifier: SmallClassifier, images: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        classifier.features(images)


@pytest.mark.parametrize("widths", [(4, 8, 8), (4, 8, 8, 65), (4, 8, 8, 0)])
def test_bad_widths(widths: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected four, the last at most 64"):
        SmallClassifier(widths=widths)  # type: ignore[arg-type]


def test_bad_folders(classifier: SmallClassifier, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"classifier folder .*: cannot be read \(FileNotFoundError: .*config.json"
    ):
        load_classifier(tmp_path)
    save_classifier(classifier, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "widths": [4, 8, 8, 7]}))
    with pytest.raises(
        ValueError, match=r"RuntimeError: (?s:.)*size mismatch(?s:.)*a model.safetensors that fits it"
    ):
        load_classifier(tmp_path)
    for text, reason in (("{}", "KeyError: 'in_channels'"), ("[]", "TypeError"), ("{", "JSONDecodeError")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"{reason}.*expected the config.json of a SmallClassifier"):
            load_classifier(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"cannot be read .*a model.safetensors that fits it"):
        load_classifier(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"FileNotFoundError: .*model.safetensors"):
        load_classifier(tmp_path)


def test_the_bundled_classifier_reads_held_out_digits():
    folder = bundled("models/digits-classifier")
    classifier = load_classifier(folder)
    assert classifier.num_features <= 64
    assert (folder / "model.safetensors").stat().st_size <= 300_000
    data = open_images("digits", split="test", channels=1, resolution=16)
    labels = data.labels(range(len(data)))
    with torch.no_grad():
        guess = classifier(to_uint8(data.images(range(len(data))))).argmax(1)
    assert labels is not None
    assert float((guess == labels).double().mean()) >= 0.98
