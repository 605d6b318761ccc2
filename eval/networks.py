"""Networks that a metric names for itself, beside the feature network of the evaluation (`eval.features`).

Each is named by a text: a model on the hub, a local folder of transformers, or for LPIPS a backbone with or without a
file of its weights. What is published under its own name is called by it; anything else carries a part of its hash.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.features import FeatureExtractor, check_images

DINOV2, CMMD, CLIP = (
    "facebook/dinov2-large",
    "openai/clip-vit-large-patch14-336",
    "openai/clip-vit-large-patch14",
)
DINOV2_SIDE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of the channels that CLIP's images are brought to."""
LPIPS_SIDE = 64
"""Pixels that the shorter side of an image has at least when LPIPS looks at it: less does not pass its network."""
BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class TextNetwork:
    """A network that puts images and texts into one space, as CLIP does.

    Attributes:
        name: What is said of it, e.g. ``"openai/clip-vit-large-patch14"``.
        mode: How images are brought to the network's size.
        images: Maps uint8 images ``(B, 3, H, W)`` to unit vectors ``(B, d)``.
        texts: Maps texts to unit vectors ``(B, d)``.
        sha256: Of the weights file.
    """

    name: str
    mode: str
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor]
    sha256: str

    @property
    def facts(self) -> dict[str, Any]:
        """What tells this network from others, in JSON types."""
        return {key: getattr(self, key) for key in ("name", "mode", "sha256")}


@dataclass(frozen=True)
class PairNetwork:
    """A network that says how far two images are from each other.

    Attributes:
        name: What the distance may be called, e.g. ``"LPIPS (alex)"``.
        mode: How images are brought to a size that the network takes.
        device: Where it runs.
        function: Maps two uint8 batches ``(B, 3, H, W)`` on `device` to ``(B,)``.
        sha256: Of the backbone's weights.
    """

    name: str
    mode: str
    device: torch.device
    function: Callable[[Tensor, Tensor], Tensor]
    sha256: str

    @torch.no_grad()
    def distances(self, images: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of every grey or RGB image, uint8 ``(N, C, H, W)``, to its reference, ``(N,)``."""
        pair = [_rgb(each, self.name).to(self.device) for each in (images, reference)]
        return self.function(*pair).double().cpu().flatten()


def load_network(name: str, spec: str, device: str | torch.device = "cpu") -> Any:
    """Load the network `name` of `LOADERS`.

    Args:
        name: ``dinov2``, ``cmmd``, ``clip`` or ``lpips``.
        spec: A hub id or a local folder; for ``lpips`` ``alex``, ``vgg`` or ``squeeze``, each with its published
            backbone weights (downloaded, checked against their hash), or with ``:<file>`` behind it.
        device: Where it runs.

    Raises:
        ValueError: If it cannot be had or read, saying what to give instead.
    """
    return LOADERS[name](spec, torch.device(device))


def _dinov2(spec: str, device: torch.device) -> FeatureExtractor:
    """Build the features of FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675): the class token of ViT-L/14."""
    from transformers import Dinov2Model

    model, digest = _from_transformers(Dinov2Model, spec, device)
    mean, std = _channels(IMAGENET, device)

    def function(images: Tensor) -> Tensor:
        images = _rgb(images, "DINOv2")
        size = (DINOV2_SIDE, DINOV2_SIDE)
        # With antialiasing, and rounded to bytes: what Pillow does, and with it the paper's code.
        resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True).round().clamp(0, 255)
        return model((resized / 255 - mean) / std).pooler_output

    mode = f"bicubic with antialiasing to {DINOV2_SIDE}x{DINOV2_SIDE}"
    name = "FD-DINOv2" if spec == DINOV2 else f"FD-DINOv2 with other DINOv2 weights {digest[:8]}"
    return FeatureExtractor(
        "dinov2", name, name.replace("FD-", "kernel distance on "), mode, device, function, digest
    )


def _cmmd(spec: str, device: torch.device) -> FeatureExtractor:
    """Build the features of CMMD (Jayasumana et al. 2024, arXiv 2401.09603): CLIP's image embeddings, of length 1."""
    from transformers import CLIPVisionModelWithProjection

    model, digest = _from_transformers(CLIPVisionModelWithProjection, spec, device)
    mean, std = _channels(OPENAI, device)
    side = model.config.image_size

    def function(images: Tensor) -> Tensor:
        images = _rgb(images, "CLIP").float() / 255
        resized = F.interpolate(images, (side, side), mode="bicubic")
        return F.normalize(model((resized - mean) / std).image_embeds, dim=1)

    mode = f"bicubic without antialiasing to {side}x{side}, as the authors do"
    name = "CMMD" if spec == CMMD else f"CMMD with other CLIP weights {digest[:8]}"
    return FeatureExtractor(
        "clip", name.replace("CMMD", "Fréchet distance on CLIP"), name, mode, device, function, digest
    )


def _clip(spec: str, device: torch.device) -> TextNetwork:
    """Build CLIP's images and texts, both brought to its input as its publisher says."""
    from transformers import CLIPModel, CLIPProcessor

    model, digest = _from_transformers(CLIPModel, spec, device)
    try:
        processor: Any = CLIPProcessor.from_pretrained(_place(spec))
    except (OSError, ValueError) as error:
        raise ValueError(_not_had(spec, "its processor and tokenizer", error)) from error
    longest = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def of_images(images: Tensor) -> Tensor:
        inputs = processor(images=list(_rgb(images, "CLIP")), return_tensors="pt")
        pixels = inputs["pixel_values"].to(device)
        found = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return F.normalize(found, dim=1).cpu()

    @torch.no_grad()
    def of_texts(texts: Sequence[str]) -> Tensor:
        inputs = processor(
            text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest
        ).to(device)
        shown = model.text_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        return F.normalize(model.text_projection(shown), dim=1).cpu()

    return TextNetwork(spec, "as the model's own processor does", of_images, of_texts, digest)


def _lpips(spec: str, device: torch.device) -> PairNetwork:
    """Build LPIPS (Zhang et al. 2018, arXiv 1801.03924, version 0.1) by torchmetrics, with its published heads."""
    import torchvision.models
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    backbone, _, file = spec.partition(":")
    if backbone not in BACKBONES:
        raise ValueError(
            f"{spec!r} is no network of LPIPS; give {', '.join(BACKBONES)} (weights are downloaded), or one of them "
            "with a file of its torchvision weights: alex:/path/to/alexnet-owt-7be5be79.pth"
        )
    published = Path(getattr(torchvision.models, BACKBONES[backbone]).IMAGENET1K_V1.url)
    path = Path(file).expanduser() if file else _downloaded(backbone)
    if not path.is_file():
        raise ValueError(
            f"LPIPS weights {str(path)!r} are not a file; give {backbone}:/path/to/{published.name}"
        )
    data = path.read_bytes()
    network: Any = _NoTrainLpips(net=backbone, pnet_rand=True)  # type: ignore[arg-type]
    _fill(network.net, data, path)
    network = network.to(device)

    def function(images: Tensor, reference: Tensor) -> Tensor:
        pair = [_at_least(each.float() / 255, LPIPS_SIDE) for each in (images, reference)]
        return network(*pair, normalize=True)

    digest = hashlib.sha256(data).hexdigest()
    wanted = published.stem.rpartition("-")[2]
    name = f"LPIPS ({backbone})" + ("" if digest.startswith(wanted) else f" with other weights {digest[:8]}")
    mode = f"as they are; shorter sides below {LPIPS_SIDE} enlarged to it, bilinear"
    return PairNetwork(name, mode, device, function, digest)


LOADERS: Mapping[str, Callable[[str, torch.device], Any]] = {
    "dinov2": _dinov2,
    "cmmd": _cmmd,
    "clip": _clip,
    "lpips": _lpips,
}


def check_network(network: Any) -> None:
    """Show a network one black image, and one that knows texts a text; a ValueError says what it does not take."""
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    if isinstance(network, FeatureExtractor):
        network.extract(black, place="a black image")
    elif isinstance(network, PairNetwork):
        network.distances(black, black)
    else:
        network.images(black)
        network.texts(["a"])


def _from_transformers(kind: Any, spec: str, device: torch.device) -> tuple[Any, str]:
    """Load a model class of transformers, in evaluation mode, and return it with the hash of its weights."""
    from transformers.utils import cached_file

    try:
        place = _place(spec)
        model, said = kind.from_pretrained(place, output_loading_info=True)
        files = [cached_file(place, name, _raise_exceptions_for_missing_entries=False) for name in WEIGHTS]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(_not_had(spec, f"a {kind.__name__}", error)) from error
    missing = sorted(said["missing_keys"])
    if missing:
        raise ValueError(
            f"{spec!r} does not hold all weights of a {kind.__name__}: {missing[0]} and {len(missing) - 1} others are "
            "missing; give the folder or the hub id of such a model"
        )
    digest = next((hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file), "")
    return model.to(device).eval().requires_grad_(False), digest


def _place(spec: str) -> str:
    """Return a local folder as it is, else what is written, a hub id; a path that is no folder is a ValueError."""
    path = Path(spec).expanduser()
    if not path.is_dir() and (path.is_absolute() or spec.startswith((".", "~"))):
        raise ValueError(f"{spec!r} is not a folder")
    return str(path) if path.is_dir() else spec


def _not_had(spec: str, what: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"{spec!r} cannot be had as {what} ({reason}); without a network give a local folder, as save_pretrained of "
        "transformers writes it, or leave the metrics that need it out of evaluate.metrics"
    )


def _downloaded(backbone: str) -> Path:
    """Return the published weights of a backbone in torch.hub's cache, downloading them at first use."""
    import torchvision.models

    url = getattr(torchvision.models, BACKBONES[backbone]).IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, URLError, RuntimeError) as error:
            raise ValueError(
                f"the weights of {backbone} could not be downloaded to {path} ({error}); without a network give a "
                f"local file as '{backbone}:/path/to/{path.name}', or leave lpips out of evaluate.metrics"
            ) from error
    return path


def _fill(network: Any, data: bytes, path: Path) -> None:
    """Put a state dict of torchvision into the slices of a backbone; both number its layers alike."""
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        wanted = network.state_dict()
        found = {key: state[re.sub(r"^slice(s\.\d+|\d+)\.", "features.", key)] for key in wanted}
        network.load_state_dict(found)
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} does not hold the torchvision weights of this backbone of LPIPS ({reason}); get the file again"
        ) from error


def _rgb(images: Tensor, name: str) -> Tensor:
    """Return grey or RGB uint8 images with three channels."""
    check_images(images, name)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"{name} takes grey or RGB images (1 or 3 channels), found {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


def _at_least(images: Tensor, side: int) -> Tensor:
    """Return images whose shorter side is `side` pixels at least."""
    factor = side / min(images.shape[-2:])
    if factor <= 1:
        return images
    size = [round(length * factor) for length in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _channels(values: tuple[tuple[float, ...], tuple[float, ...]], device: torch.device) -> list[Tensor]:
    """Return mean and standard deviation of the channels, ``(1, 3, 1, 1)`` each."""
    return [torch.tensor(each, device=device)[None, :, None, None] for each in values]
