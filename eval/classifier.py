"""A small convolutional classifier whose features stand in for Inception's on small images."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

MAX_WIDTH = 64


class SmallClassifier(nn.Module):
    """Four 3x3 convolutions with batch norm, global average pooling, one linear layer.

    Images of any size go in; the pooled activations of the last convolution are the features.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        widths: Channels of the convolutions; the second and third halve the resolution. The last one is the
            width of the features, at most 64, so that a covariance from 1,000 samples is well determined.
        name: What the features are called in reports, e.g. ``"digits-classifier"``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: tuple[int, int, int, int] = (16, 32, 64, 64),
        name: str = "digits-classifier",
    ) -> None:
        super().__init__()
        if len(widths) != 4 or not 1 <= widths[-1] <= MAX_WIDTH:
            raise ValueError(
                f"classifier widths {tuple(widths)}: expected four, the last at most {MAX_WIDTH}"
            )
        self.config = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "widths": list(widths),
            "name": name,
        }
        self.in_channels = in_channels
        self.name = name
        fan_in = (in_channels, *widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if i in (1, 2) else 1, padding=1, bias=False)
            for i, (a, b) in enumerate(zip(fan_in, widths, strict=True))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.head = nn.Linear(widths[-1], num_classes)

    @property
    def num_features(self) -> int:
        """Width of the features."""
        return self.head.in_features

    def features(self, images: Tensor) -> Tensor:
        """Return the features of images, float32 ``(B, num_features)``, non-negative.

        Args:
            images: ``(B, C, H, W)``; uint8 in 0..255, or floating point in [-1, 1].

        Raises:
            ValueError: If the shape or the dtype does not fit.
        """
        bytes_in = images.dtype == torch.uint8
        fits = images.ndim == 4 and images.shape[1] == self.in_channels
        if not fits or not (bytes_in or images.is_floating_point()):
            raise ValueError(
                f"classifier {self.name!r} takes images (B, {self.in_channels}, H, W), uint8 or floating point; got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        x = (images.float() / 127.5 - 1 if bytes_in else images).to(self.head.weight.dtype)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images as in `features`."""
        return self.head(self.features(images))


def save_classifier(classifier: SmallClassifier, folder: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` to `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(classifier, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(classifier.config, indent=2) + "\n", encoding="utf-8")


def load_classifier(folder: str | Path) -> SmallClassifier:
    """Read a classifier written by `save_classifier`, in evaluation mode.

    Raises:
        ValueError: If a file is missing or does not fit, saying what is wrong.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classifier = SmallClassifier(
            *(config[key] for key in ("in_channels", "num_classes", "widths", "name"))
        )
        load_model(classifier, folder / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"classifier folder {folder}: cannot be read ({type(error).__name__}: {error}); expected the config.json "
            "of a SmallClassifier and a model.safetensors that fits it"
        ) from error
    return classifier.eval()
