"""Judge a base model and write its model card.

    python scripts/evaluate_base.py recipes/models/digits-dit --classifier recipes/models/digits-classifier

Samples as the quickstart does (20 steps, no guidance), asks the classifier whether the samples are of the class
that was asked for, and measures the Fréchet distance to the held-out images. Numbers go to ``training.json`` and
``README.md`` of the model folder, a grid of samples to `--grid`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.classifier import SmallClassifier, load_classifier
from eval.fid import frechet_distance
from pruning.data import ImageData, open_images
from pruning.models import load_denoiser, load_scheduler, num_classes
from pruning.sampling import sample, to_uint8

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [diffusion, {family}]
---
# {name}

A small `{cls}` ({parameters:,} parameters, bfloat16 weights, EMA of the training) that draws {channels}-channel
{size}x{size} images of the ten digits, class-conditional. It is one of sinkprune's embedded base models:
small enough to be pruned and retrained in minutes on a CPU, not meant for anything else.

- **Data**: {data}: {data_note}.
- **Command**: `python scripts/train_base.py {preset} --out recipes/models/{name}`
  with steps {steps}, batch size {batch_size}, seed {seed} (the defaults).
- **Training**: AdamW, peak learning rate {lr}, EMA {ema}, label dropout {label_dropout}; {minutes:.0f} minutes on
  one busy CPU core, float32.
- **Prediction and scheduler**: {prediction_type}, {scheduler} ({beta_schedule} betas, {timestep_spacing} spacing).
- **Measured** on {samples:,} samples, {sampling_steps} DDIM steps, no guidance, seed {sampling_seed}:
  - the classifier agrees with the asked class: {agreement:.1%};
  - Fréchet distance on {features} features to the {held_out} held-out images: {frechet:.3f}
    (the training images' own: {frechet_train:.3f}).

Measured by `python scripts/evaluate_base.py recipes/models/{name} --classifier recipes/models/digits-classifier`.
The distance is on the features of a small digits classifier, so it compares with nothing published as FID.
The held-out digits (a stratified fifth) were in nobody's training: neither this model's nor the classifier's.

Licence of the data: UCI "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), CC BY 4.0,
as shipped with scikit-learn.

```python
import torch
from diffusers import {cls}, DDIMScheduler

model = {cls}.from_pretrained("recipes/models/{name}/{folder}")
scheduler = DDIMScheduler.from_pretrained("recipes/models/{name}/scheduler")
```
"""

DIGITS_NOTE = "1,438 of scikit-learn's 1,797 digits, 8x8 enlarged to 16x16 (bicubic), no augmentation"


@torch.no_grad()
def features_of(classifier: SmallClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (N, D) in float64 and predicted classes (N,) of uint8 images."""
    parts = [classifier.features(chunk) for chunk in images.split(256)]
    features = torch.cat(parts)
    return features.double(), classifier.head(features).argmax(1)


def all_images(data: ImageData) -> Tensor:
    """Return every image of `data` as uint8."""
    return to_uint8(data.images(range(len(data))))


def grid(images: Tensor, columns: int, scale: int) -> Image.Image:
    """Return uint8 images (N, C, H, W) side by side, enlarged, with a line between."""
    channels, height, width = images.shape[1:]
    rows = -(-len(images) // columns)
    canvas = torch.full((channels, rows * (height + 1) + 1, columns * (width + 1) + 1), 96, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[:, top : top + height, left : left + width] = image
    pixels = canvas.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def measure(
    folder: Path, classifier: SmallClassifier, args: argparse.Namespace
) -> tuple[dict[str, Any], Tensor]:
    """Return the numbers and the samples."""
    model, scheduler = load_denoiser(folder), load_scheduler(folder)
    classes = num_classes(model) or 1
    labels = torch.arange(args.samples) % classes
    start = time.time()
    images = sample(
        model,
        scheduler,
        sample_ids=range(args.samples),
        labels=labels if num_classes(model) else None,
        num_steps=args.sampling_steps,
        seed=args.sampling_seed,
        batch_size=100,
    )
    seconds = time.time() - start
    channels, size = images.shape[1], images.shape[2]
    train = open_images(args.data, split="train", channels=channels, resolution=size)
    held_out = open_images(args.test_data or args.data, split="test", channels=channels, resolution=size)
    features, guess = features_of(classifier, images)
    real, _ = features_of(classifier, all_images(held_out))
    seen, _ = features_of(classifier, all_images(train))
    right = guess == labels
    numbers = {
        "samples": args.samples,
        "sampling_steps": args.sampling_steps,
        "sampling_seed": args.sampling_seed,
        "agreement": float(right.double().mean()),
        "agreement_by_class": [float(right[labels == c].double().mean()) for c in range(classes)],
        "frechet": frechet_distance(real, features),
        "frechet_train": frechet_distance(real, seen),
        "features": classifier.name,
        "held_out": len(held_out),
        "sampling_seconds": round(seconds, 1),
    }
    return numbers, images


def card(folder: Path, training: dict[str, Any], measured: dict[str, Any]) -> str:
    """Return the model card."""
    part = "transformer" if (folder / "transformer").is_dir() else "unet"
    config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    digits = training["data"].startswith("digits")
    return CARD.format(
        **{**training, **measured},
        name=folder.name,
        family="dit" if part == "transformer" else "unet",
        cls=config["_class_name"],
        channels=config["in_channels"],
        size=config["sample_size"],
        folder=part,
        minutes=training["seconds"] / 60,
        data_note=DIGITS_NOTE if digits else "see the source",
        scheduler=scheduler["_class_name"],
        **{key: scheduler[key] for key in ("prediction_type", "beta_schedule", "timestep_spacing")},
    )


def main() -> None:
    """Measure, write numbers, card and grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--test-data", default=None)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--sampling-seed", type=int, default=0)
    parser.add_argument("--grid", type=Path, default=None, help="PNG of the first 100 samples")
    args = parser.parse_args()
    measured, images = measure(args.folder, load_classifier(args.classifier), args)
    path = args.folder / "training.json"
    training = json.loads(path.read_text(encoding="utf-8"))
    training["measured"] = measured
    path.write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    (args.folder / "README.md").write_text(card(args.folder, training, measured), encoding="utf-8")
    if args.grid is not None:
        grid(images[:100], 10, 3).save(args.grid)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
