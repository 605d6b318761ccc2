r"""Train the small classifier whose features stand in for Inception's on small images.

    python scripts/train_digits_classifier.py --out recipes/models/digits-classifier
    python scripts/train_digits_classifier.py --data DATA/fashion_mnist --name fashion-classifier \
        --out runs/base/fashion-classifier --steps 3000

One to two minutes on one core for the digits, ten for more images. Trains on the train split only; `--data` takes
any source of `pruning.data`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.classifier import SmallClassifier, save_classifier
from pruning.data import ImageData, open_images

log = logging.getLogger("train_digits_classifier")


def augment(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Shift by up to `shift` pixels each way and change the contrast a little; background stays -1."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4, value=-1.0)
    offsets = torch.randint(0, 2 * shift + 1, (batch, 2), generator=generator).tolist()
    moved = torch.stack(
        [x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, offsets, strict=True)]
    )
    gain = 1 + 0.2 * (torch.rand(batch, 1, 1, 1, generator=generator) - 0.5)
    noise = 0.05 * torch.randn(images.shape, generator=generator)
    return ((moved + 1) * gain - 1 + noise).clamp(-1, 1)


def accuracy(classifier: SmallClassifier, data: ImageData) -> float:
    """Return the share of right answers on all of `data`."""
    classifier.eval()
    right = 0
    for rows in torch.arange(len(data)).split(1000):
        labels = data.labels(rows)
        assert labels is not None
        with torch.no_grad():
            right += int((classifier(data.images(rows)).argmax(1) == labels).sum())
    return right / len(data)


def train(
    data: ImageData, *, steps: int, batch_size: int, seed: int, shift: int, name: str
) -> SmallClassifier:
    """Train on `data` with AdamW, one-cycle learning rate and label smoothing."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # layers draw their first weights from the global generator
    classifier = SmallClassifier(data.shape[0], data.num_classes or 10, name=name).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(data), (batch_size,), generator=generator)
        labels = data.labels(rows)
        assert labels is not None
        images = augment(data.images(rows), shift, generator)
        loss = F.cross_entropy(classifier(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            log.info("step %d loss %.4f", step, loss.item())
    return classifier.eval()


def main() -> None:
    """Train, measure on the held-out split, write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--data", default="digits", help="'digits', a parquet file, an image folder or a hub id"
    )
    parser.add_argument(
        "--test-data", default=None, help="source of the held-out images, if it is another file"
    )
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--label-column", default=None)
    parser.add_argument("--name", default="digits-classifier", help="what reports call the features")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--shift", type=int, default=1, help="augmentation: pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    common = {"channels": args.channels, "resolution": args.resolution, "label_column": args.label_column}
    data = open_images(args.data, split="train", **common)
    held_out = open_images(args.test_data or args.data, split=args.test_split, **common)
    start = time.time()
    classifier = train(
        data, steps=args.steps, batch_size=args.batch_size, seed=args.seed, shift=args.shift, name=args.name
    )
    numbers = {
        "train_accuracy": accuracy(classifier, data),
        "test_accuracy": accuracy(classifier, held_out),
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "feature_width": classifier.num_features,
        "data": data.name,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "seconds": round(time.time() - start, 1),
        "torch": torch.__version__,
    }
    save_classifier(classifier, args.out)
    (args.out / "training.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
