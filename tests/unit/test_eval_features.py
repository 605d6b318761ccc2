"""Feature extractors: what is accepted, what is refused, and what the distances are called."""

import hashlib
import math
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from eval.classifier import SmallClassifier, save_classifier
from eval.features import load_features


class Mean(nn.Module):
    """One feature an image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2, 3))[:, None]


def pictures(n: int = 5, channels: int = 1) -> Tensor:
    return torch.arange(n * channels * 4, dtype=torch.uint8).reshape(n, channels, 2, 2)


def test_a_module_is_named_after_its_class() -> None:
    extractor = load_features(Mean())
    assert extractor.frechet_name == "Fréchet distance on Mean features"
    assert extractor.kernel_name == "Kernel distance on Mean features"
    assert extractor.sha256 is None
    assert extractor.extract(pictures(3), batch_size=2).tolist() == [[1.5], [5.5], [9.5]]


def test_a_module_is_put_in_eval_mode() -> None:
    module = Mean().train()
    load_features(module)
    assert not module.training


def test_a_classifier_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = SmallClassifier(name="toy-classifier").eval()
    save_classifier(classifier, tmp_path / "anywhere")
    extractor = load_features(tmp_path / "anywhere")
    images = torch.randint(256, (6, 1, 16, 16), dtype=torch.uint8)
    assert extractor.frechet_name == "Fréchet distance on toy-classifier features"
    assert torch.equal(extractor.extract(images, batch_size=6), classifier.features(images))
    digest = hashlib.sha256((tmp_path / "anywhere" / "model.safetensors").read_bytes()).hexdigest()
    assert extractor.sha256 == digest
    assert load_features(str(tmp_path / "anywhere")).name == "toy-classifier"


def test_an_unknown_spec_is_answered_with_the_valid_forms(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unknown feature extractor 'clip'; give 'inception'.*config.json.*Module"
    ):
        load_features("clip")
    with pytest.raises(ValueError, match="unknown feature extractor"):
        load_features(tmp_path)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (pictures().float(), "subject 'x': images must be rounded uint8 .* found torch.float32"),
        (pictures()[0], r"found torch.uint8 \(1, 2, 2\)"),
        (pictures()[:0], "N > 0"),
    ],
)
def test_what_is_no_image(images: Tensor, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        load_features(Mean()).extract(images, place="subject 'x'")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            torch.zeros(2),
            r"subject 'x': .* features of images 0 to 1 must be of shape \(2, d\), found \(2,\)",
        ),
        (torch.zeros(3, 1), r"found \(3, 1\)"),
        ((torch.zeros(2, 1),), "found tuple"),
        (torch.full((2, 1), math.nan), "must be finite floats"),
        (torch.zeros(2, 1, dtype=torch.long), "must be finite floats; found torch.int64"),
    ],
)
def test_what_is_no_feature(output, expected: str) -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor):
            return output

    with pytest.raises(ValueError, match=expected):
        load_features(Fixed()).extract(pictures(2), place="subject 'x'")


def test_inception_weights_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"Inception weights '/nowhere/w\.pth' are not a file"):
        load_features("inception:/nowhere/w.pth")


class Dangerous:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a weights file ran code')",))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": Dangerous()}, path)
    with pytest.raises(
        ValueError, match=r"w.pth is not a plain state dict and was not loaded .*; use weights you trust"
    ):
        load_features(f"inception:{path}")
    path.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(ValueError, match="is not a plain state dict"):
        load_features(f"inception:{path}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.zeros(1)], "must map parameter names to tensors, found list"),
        ({"w": torch.tensor([math.nan])}, "parameter 'w' holds NaN or infinity"),
        ({"w": torch.zeros(1)}, "does not hold the weights of torch-fidelity's Inception"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, content, expected: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=expected):
        load_features(f"inception:{tmp_path / 'w.pth'}")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match="is not a plain state dict"):
        load_features(f"inception:{tmp_path / 'w.pth'}")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, path: str, hash_prefix: str) -> None:
        assert hash_prefix in url
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match=r"could not be downloaded .* give a local file as 'inception:/path"):
        load_features("inception")
