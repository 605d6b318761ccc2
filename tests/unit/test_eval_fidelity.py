"""Our FID, KID, precision and recall against torch-fidelity's on the same images and the same Inception weights file.

The published weights cannot be had offline, so the file holds random weights of the same format, drawn so that the
activations keep their size.
"""

from pathlib import Path

import pytest
import torch
import torch_fidelity
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as inception

from eval.features import load_features
from eval.kid import kernel_distance
from eval.run import look, measure_all
from eval.types import DATA, Context, Subject

N = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a random state dict of torch-fidelity's Inception."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    torch.save(network.state_dict(), path)
    return path


def pictures(seed: int, low: int) -> Tensor:
    """Return (N, 3, 12, 14) images; not square, so that height and width cannot be mixed up."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (N, 3, 12, 14), dtype=torch.uint8, generator=generator)


def write(images: Tensor, folder: Path) -> str:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
    return str(folder)


def test_fid_kid_precision_and_recall_agree_with_torch_fidelity(weights: Path, tmp_path: Path) -> None:
    real, generated = pictures(0, 0), pictures(1, 120)
    theirs = torch_fidelity.calculate_metrics(
        input1=write(generated, tmp_path / "generated"),
        input2=write(real, tmp_path / "real"),
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",  # else precision and recall are of another network
        feature_layer_prc="2048",
        kid_subsets=2,
        kid_subset_size=N,  # all images, so that both draw the same subset
        feature_extractor_weights_path=str(weights),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    subjects = {"dense": Subject(sample=lambda ids: generated[ids])}
    context = Context(
        subjects,
        real=lambda: real,
        features=lambda: load_features(f"inception:{weights}"),
        num_samples=N,
        batch_size=N,
    )
    ours = measure_all(context, ["fid", "kid", "precision_recall"])["dense"]
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-4)
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-4)
    assert ours["frechet"] > 1
    assert ours["frechet"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    images = {"samples": look(context, "dense", "samples", {})}
    features = [look(context, name, "image_features", images).tensors["features"] for name in (DATA, "dense")]
    mean, _, _ = kernel_distance(*features, subsets=2, subset_size=N)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)

    assert ours["frechet_name"].startswith("FID with unpublished Inception weights ")
    assert ours["frechet_features_sha256"].startswith(ours["frechet_name"][-8:])
    assert ours["frechet_mode"].startswith("antialias=False")
    assert ours["frechet_warning"].startswith("n ≤ d: covariance is singular")
    assert ours["kernel_name"].startswith("KID with unpublished")


def test_grey_images_are_repeated_and_the_published_file_is_fid(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = load_features(f"inception:{weights}").sha256
    assert digest is not None
    monkeypatch.setattr("eval.features.INCEPTION_SHA256_PREFIX", digest[:8])
    extractor = load_features(f"inception:{weights}")
    assert (extractor.frechet_name, extractor.kernel_name) == ("FID", "KID")
    grey = pictures(0, 0)[:1, :1]
    assert torch.equal(extractor.extract(grey), extractor.extract(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"Inception takes grey or RGB images .* found 4"):
        extractor.extract(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_the_download_is_checked_against_its_hash_and_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        asked.append(hash_prefix)
        Path(path).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert load_features("inception").name == load_features("inception").name == "inception"
    assert asked == ["6726825d"]
