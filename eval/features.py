"""Feature extractors for the Fréchet and the kernel distance: Inception, a small classifier, or any module.

Only features of the Inception network of 2015 make a distance that may be called FID or KID (Heusel et al. 2017,
arXiv 1706.08500; Bińkowski et al. 2018, arXiv 1801.01401); every other one says in its name what it is.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import torch
from torch import Tensor, nn

from eval.classifier import load_classifier
from eval.observation import Rows, parts_of

# torch.hub's convention: the file name of the published weights carries the first digits of their sha256.
INCEPTION_SHA256_PREFIX = "6726825d"


@dataclass(frozen=True)
class FeatureExtractor:
    """Maps uint8 images to features and says what the distances on them are called.

    Attributes:
        name: Short name, e.g. ``"inception"`` or ``"digits-classifier"``.
        frechet_name: What the Fréchet distance on these features may be called.
        kernel_name: What the kernel distance may be called.
        mode: How images are brought to the network's size; recorded with every result.
        device: Where the network runs.
        function: Maps uint8 images ``(B, C, H, W)`` on `device` to features ``(B, d)``.
        sha256: Of the weights file, or None for a module given in Python.
    """

    name: str
    frechet_name: str
    kernel_name: str
    mode: str
    device: torch.device
    function: Callable[[Tensor], Tensor]
    sha256: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What tells these features from others, in JSON types."""
        return {key: getattr(self, key) for key in ("name", "frechet_name", "kernel_name", "mode", "sha256")}

    def check_channels(self, channels: int) -> None:
        """Raise ValueError unless images of that many channels can be taken, by trying one small black image."""
        self.extract(torch.zeros(1, channels, 16, 16, dtype=torch.uint8), place="a black image")

    def extract(self, images: Tensor | Rows, *, batch_size: int = 64, place: str = "images") -> Tensor:
        """Return the features of uint8 images ``(N, C, H, W)`` as a CPU tensor ``(N, d)``; `place` says whose they are.

        Raises:
            ValueError: If the images are none, or the features are not a finite float ``(B, d)``.
        """
        return self.rows(images, batch_size=batch_size, place=place).held()

    def rows(self, images: Tensor | Rows, *, batch_size: int = 64, place: str = "images") -> Rows:
        """Return what `extract` does batch by batch; images that come as rows are taken as they come."""
        if isinstance(images, Rows):
            return Rows(images.sizes, partial(self._batches, images.some, images.sizes, batch_size, place))
        check_images(images, place)
        parts = parts_of(len(images), batch_size)
        sizes = [*map(len, parts)]

        def some(numbers: Sequence[int]) -> Iterator[Tensor]:
            return (images[parts[number].start : parts[number].stop] for number in numbers)

        return Rows(sizes, partial(self._batches, some, sizes, batch_size, place))

    def _batches(
        self,
        images: Callable[[Sequence[int]], Iterator[Tensor]],
        sizes: Sequence[int],
        batch_size: int,
        place: str,
        numbers: Sequence[int],
    ) -> Iterator[Tensor]:
        """Yield the features of some batches of images, at most `batch_size` of them in one call of the network."""
        starts = [0, *itertools.accumulate(sizes)]
        for number, batch in zip(numbers, images(numbers), strict=True):
            check_images(batch, place)
            found, start = [], starts[number]
            for part in batch.split(batch_size):
                with torch.no_grad():
                    features = self.function(part.to(self.device))
                where = f"{place}: {self.name} features of images {start} to {start + len(part) - 1}"
                _check_features(features, len(part), where)
                start += len(part)
                found.append(features.cpu())
            yield torch.cat(found)


def _check_features(features: Any, count: int, where: str) -> None:
    """Raise ValueError unless a network returned finite floats, a row for each image."""
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != count:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{where} must be of shape ({count}, d), found {found}")
    if not features.is_floating_point() or not bool(torch.isfinite(features).all()):
        raise ValueError(
            f"{where} must be finite floats; found {features.dtype} with NaN, infinity or integers"
        )


def check_images(images: Tensor, place: str) -> None:
    """Raise ValueError unless `images` is uint8 of shape ``(N, C, H, W)`` with N > 0; NaN is named as such."""
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        raise ValueError(
            f"{place}: the images hold NaN or infinity; check the model's weights and its dtype (float16 overflows)"
        )
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"{place}: images must be rounded uint8 (N, C, H, W) with N > 0, found {images.dtype} "
            f"{tuple(images.shape)}"
        )


def load_features(spec: str | Path | nn.Module, device: str | torch.device = "cpu") -> FeatureExtractor:
    """Load a feature extractor.

    Args:
        spec: ``"inception"``, torch-fidelity's with the published weights, downloaded at first use into torch.hub's
            cache and checked against their hash; ``"inception:/path/to/weights.pth"``, the same from a file, offline;
            a folder of a `eval.classifier.SmallClassifier`; or a module that maps uint8 images ``(B, C, H, W)`` to
            features ``(B, d)`` and may have a ``name``.
        device: Where it runs.

    Raises:
        ValueError: If `spec` is none of these, or the weights cannot be had, read or trusted.
    """
    device = torch.device(device)
    if isinstance(spec, nn.Module):
        given = getattr(spec, "name", None)
        name = given if isinstance(given, str) else type(spec).__name__
        return _named(name, "as the module takes them, no resize", device, spec.to(device).eval(), None)
    kind, _, file = str(spec).partition(":")
    if kind == "inception":
        return _inception_features(Path(file).expanduser() if file else _download_inception(), device)
    folder = Path(spec).expanduser()
    weights = folder / "model.safetensors"
    if not (folder / "config.json").is_file() or not weights.is_file():
        raise ValueError(
            f"unknown feature extractor {str(spec)!r}; give 'inception' (weights are downloaded), "
            "'inception:/path/to/weights.pth', a folder with config.json and model.safetensors of a classifier, or a "
            "torch.nn.Module"
        )
    classifier, digest = load_classifier(folder).to(device), hashlib.sha256(weights.read_bytes()).hexdigest()
    return _named(classifier.name, "the images' own size, no resize", device, classifier.features, digest)


def inception_is_here() -> bool:
    """Tell whether the published weights are in torch.hub's cache, so that ``inception`` needs no network."""
    return _inception_place()[1].is_file()


def _inception_place() -> tuple[str, Path]:
    """Return where the published weights come from, and their place in torch.hub's cache."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3, Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name


def _named(
    name: str, mode: str, device: torch.device, function: Callable[[Tensor], Tensor], digest: str | None
) -> FeatureExtractor:
    """Build an extractor whose distances are named after its features."""
    frechet, kernel = f"Fréchet distance on {name} features", f"Kernel distance on {name} features"
    return FeatureExtractor(name, frechet, kernel, mode, device, function, digest)


def _download_inception() -> Path:
    """Return the path of the published weights in torch.hub's cache, downloading them at first use."""
    url, path = _inception_place()
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256_PREFIX)
        except (OSError, URLError, RuntimeError) as error:
            raise ValueError(
                f"the Inception weights could not be downloaded to {path} ({error}); without a network give a local "
                "file as 'inception:/path/to/weights.pth', or a classifier folder, or leave fid and kid out of "
                "evaluate.metrics"
            ) from error
    return path


def _inception_features(path: Path, device: torch.device) -> FeatureExtractor:
    """Build torch-fidelity's Inception from a weights file."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    data = _checked_weights(path)
    digest = hashlib.sha256(data).hexdigest()
    try:
        # The constructor unpickles what it is given: give it the very bytes that were checked, not the path.
        network = NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], cast(Any, io.BytesIO(data)), antialias=False
        )
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold the weights of torch-fidelity's Inception: {error}"
        ) from error
    network = network.to(device)

    def function(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes grey or RGB images (1 or 3 channels), found {images.shape[1]}")
        return network(images.expand(-1, 3, -1, -1))

    mode = "antialias=False: TensorFlow 1.x bilinear to 299x299, comparable with papers"
    published = digest.startswith(INCEPTION_SHA256_PREFIX)
    suffix = "" if published else f" with unpublished Inception weights {digest[:8]}"
    return FeatureExtractor("inception", f"FID{suffix}", f"KID{suffix}", mode, device, function, digest)


def _checked_weights(path: Path) -> bytes:
    """Read a weights file and make sure that it is a plain, finite state dict that runs no code when loaded."""
    if not path.is_file():
        raise ValueError(
            f"Inception weights {str(path)!r} are not a file; give 'inception:/path/to/weights.pth'"
        )
    data = path.read_bytes()
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is not a plain state dict and was not loaded ({reason}); use weights you trust"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must map parameter names to tensors, found {type(state).__name__}")
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path}: parameter {name!r} holds NaN or infinity; get the file again")
    return data
