r"""Make the models of the sink study that are not in the repository; DATA is a folder of image sets.

    python scripts/train_base.py digits-dit  --data DATA/fashion_mnist/train.parquet --resolution 16 \
        --work runs/base/fashion-dit-work  --out runs/base/fashion-dit  --steps 4000
    python scripts/train_base.py digits-unet --data DATA/fashion_mnist/train.parquet --resolution 16 \
        --work runs/base/fashion-unet-work --out runs/base/fashion-unet --steps 2000
    python scripts/train_base.py digits-dit  --data DATA/cifar10_jpeg/train.parquet --resolution 16 \
        --work runs/base/cifar-dit-work    --out runs/base/cifar-dit    --steps 5000 \
        --set in_channels=3 out_channels=3
    python scripts/train_digits_classifier.py --data DATA/fashion_mnist --name fashion-classifier \
        --out runs/base/fashion-classifier --steps 3000
    python scripts/train_digits_classifier.py --data DATA/cifar10_jpeg --name cifar-classifier --channels 3 \
        --out runs/base/cifar-classifier --steps 6000

Twins of a DiT, fine-tuned from it with equal steps: `plain`; `sinks`, rewarded for sinks in half of its heads;
`massive`, rewarded also for rows of large norm at the sinks; `off_by_one`, whose softmax needs none
(docs/studies/sink-awareness.md). Load them with `study_models.attention.load_twin`:

    python scripts/train_base.py digits-dit --data DATA/fashion_mnist/train.parquet --set patch_size=4 \
        --resolution 16 --work runs/base/fashion-dit-16-work --out runs/base/fashion-dit-16 --steps 3000
    python scripts/train_study.py twins --start runs/base/fashion-dit-16 --data DATA/fashion_mnist \
        --out runs/base/fashion-dit-16-twins --steps 800 --weight 3 --target 0.9 --energy 16

A UNet with cross-attention to a frozen causal text encoder, in a pipeline on pixels, and the captions for it:

    python scripts/train_study.py captions  --data DATA/fashion_mnist --out runs/base/data/fashion-captions
    python scripts/train_study.py text-unet --data runs/base/data/fashion-captions \
        --out runs/base/fashion-text-unet --steps 3000

Every training is resumed by the same command after a kill. To see samples and ask a classifier about them:

    python scripts/train_study.py look runs/base/fashion-text-unet --classifier runs/base/fashion-classifier
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from evaluate_base import features_of, grid
from study_models.attention import OFF_BY_ONE, load_twin, set_off_by_one, sink_penalty
from study_models.captions import caption, text_pipeline, write_captions
from study_models.figures import step_zero
from torch import Tensor, nn
from train_base import Batch, check_fit, noised_step, train

from eval.classifier import load_classifier
from pruning.data import ImageData, open_images
from pruning.models import denoiser_call, load_denoiser, load_pipeline, load_scheduler, sample_shape
from pruning.sampling import sample, sample_pipeline

TWINS = ("plain", "sinks", "massive", OFF_BY_ONE)
REWARDED = ("sinks", "massive")
SETTINGS = ("steps", "batch_size", "lr", "ema", "label_dropout", "seed")


def images_for(model: nn.Module, source: str, split: str) -> ImageData:
    """Open images as large as the model takes them."""
    channels, size, _ = sample_shape(model)
    return open_images(source, split=split, channels=channels, resolution=size)


def write_numbers(out: Path, args: argparse.Namespace, model: nn.Module, numbers: dict[str, Any]) -> None:
    """Write ``training.json``, and print it."""
    numbers |= {name: getattr(args, name) for name in SETTINGS}
    numbers |= {"parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__}
    (out / "training.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({out.name: numbers}), flush=True)


def fine_tune(twin: str, args: argparse.Namespace) -> None:
    """Train one twin and write its folder, with its figures on held-out images."""
    model, scheduler = cast(nn.Module, load_denoiser(args.start)), load_scheduler(args.start)
    data = images_for(model, args.data, "train")
    check_fit(model, data)
    if twin == OFF_BY_ONE:
        set_off_by_one(model)
    out = args.out / twin
    settings = argparse.Namespace(**{**vars(args), "only": twin, "work": args.out / "work" / twin})
    energy = args.energy if twin == "massive" else None
    with sink_penalty(model, args.target, energy) if twin in REWARDED else nullcontext() as lack:
        penalty = None if lack is None else lambda: args.weight * lack()
        numbers = train(model, scheduler, data, settings, penalty=penalty)
    part = next(path.name for path in args.start.iterdir() if (path / "config.json").is_file())
    cast(Any, model.eval().to("cpu", torch.bfloat16)).save_pretrained(out / part)
    shutil.copytree(args.start / "scheduler", out / "scheduler", dirs_exist_ok=True)
    numbers |= {"preset": f"{args.start.name} {twin}", "data": data.name}
    numbers["attention"] = OFF_BY_ONE if twin == OFF_BY_ONE else "softmax"
    if twin in REWARDED:
        numbers |= {"target": args.target, "weight": args.weight, "energy": energy}
    numbers["step_zero"] = step_zero(model.float(), scheduler, images_for(model, args.data, "test"))
    write_numbers(out, args, model, numbers)


def caption_batches(pipeline: Any) -> Batch:
    """Return what makes the batches of a text-conditional model; a dropped caption is empty."""

    @cache
    def embedding(prompt: str) -> Tensor:  # (77, C)
        with torch.no_grad():
            return pipeline.encode_prompt([prompt], "cpu", 1, do_classifier_free_guidance=False)[0][0]

    def batch(
        data: ImageData, model: nn.Module, scheduler: Any, step: int, args: argparse.Namespace
    ) -> tuple[dict[str, Any], Tensor]:
        rows, x_t, target, model_t, drop = noised_step(data, scheduler, step, args)
        captions = data.captions(rows)
        if captions is None:
            raise SystemExit(f"{data.name} has no captions: write them with `train_study.py captions`")
        chosen = ["" if gone else text for text, gone in zip(captions, drop.tolist(), strict=True)]
        text = torch.stack([embedding(prompt) for prompt in chosen])
        condition = {"encoder_hidden_states": text.to(args.device)}
        return denoiser_call(model, x_t.to(args.device), model_t.to(args.device), condition), target.to(
            args.device
        )

    return batch


def train_text_unet(args: argparse.Namespace) -> None:
    """Train the UNet of a text pipeline and write the whole pipeline, with figures on held-out images."""
    args.work = args.out / "work"
    pipeline = text_pipeline(args.work / "tokenizer", args.seed)
    unet, scheduler = cast(nn.Module, pipeline.unet), pipeline.scheduler
    data = images_for(unet, args.data, "train")
    check_fit(unet, data)
    numbers = train(unet, scheduler, data, args, batch=caption_batches(pipeline))
    unet.eval().to("cpu", torch.bfloat16)
    pipeline.save_pretrained(args.out)
    unet.float()
    numbers |= {"preset": "text-unet", "data": data.name}
    numbers["step_zero"] = step_zero(unet, scheduler, images_for(unet, args.data, "test"), pipeline=pipeline)
    write_numbers(args.out, args, unet, numbers)


def look(args: argparse.Namespace) -> None:
    """Draw samples of every class, save a grid, and say how many the classifier takes for what they should be."""
    model, classifier = load_twin(args.folder), load_classifier(args.classifier)
    pipeline = load_pipeline(args.folder, denoiser=cast(Any, model))
    labels = torch.arange(args.samples) % classifier.head.out_features
    options: dict[str, Any] = {"seed": 0, "batch_size": 50, "sample_ids": range(args.samples)}
    if pipeline is None:
        images = sample(model, load_scheduler(args.folder), labels=labels, num_steps=20, **options)
    else:
        prompts = [{"prompt": caption(label, row)} for row, label in enumerate(labels.tolist())]
        arguments = {"num_inference_steps": 20, "guidance_scale": args.guidance}
        images = sample_pipeline(pipeline, prompts, arguments=arguments, **options)
    _, guess = features_of(classifier, images)
    right = guess == labels
    by_class = [round(float(right[labels == c].double().mean()), 3) for c in labels.unique()]
    grid(images[:100], 10, 3).save(args.folder / "samples.png")
    found = {
        "samples": args.samples,
        "agreement": float(right.double().mean()),
        "agreement_by_class": by_class,
    }
    print(json.dumps({str(args.folder): found}))


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    twins = commands.add_parser("twins", help="fine-tune a DiT with, and without, sinks")
    twins.add_argument("--start", type=Path, required=True, help="model folder")
    twins.add_argument("--only", nargs="*", choices=TWINS, default=TWINS)
    twins.add_argument("--target", type=float, default=0.5, help="mass of the largest key, where rewarded")
    twins.add_argument("--weight", type=float, default=1.0, help="of the penalty")
    twins.add_argument(
        "--energy", type=float, default=16.0, help="of a sink's row over the mean, of `massive`"
    )
    text = commands.add_parser("text-unet", help="train a UNet on captions")
    for command, steps, lr, warmup, ema in ((twins, 600, 3e-4, 50, 0.99), (text, 3000, 1e-3, 200, 0.998)):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument(
            "--data", required=True, help="'digits' or a folder with a train and a test split"
        )
        command.add_argument("--steps", type=int, default=steps)
        command.add_argument("--batch-size", type=int, default=64)
        command.add_argument("--lr", type=float, default=lr)
        command.add_argument("--warmup", type=int, default=warmup)
        command.add_argument("--ema", type=float, default=ema)
        command.add_argument("--label-dropout", type=float, default=0.1, help="of classes or captions")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="cpu")
        command.add_argument("--checkpoint-every", type=int, default=100)
    captions = commands.add_parser("captions", help="write a data set with captions of its classes")
    captions.add_argument("--data", required=True)
    captions.add_argument("--out", type=Path, required=True)
    seen = commands.add_parser("look", help="sample a trained model")
    seen.add_argument("folder", type=Path)
    seen.add_argument("--classifier", type=Path, required=True)
    seen.add_argument("--samples", type=int, default=200)
    seen.add_argument("--guidance", type=float, default=1.0, help="of a text model")
    return parser.parse_args()


def main() -> None:
    """Run one command; results are lines of JSON."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.command == "twins":
        for twin in args.only:
            fine_tune(twin, args)
    elif args.command == "text-unet":
        train_text_unet(args)
    elif args.command == "captions":
        for split in ("train", "test"):
            write_captions(args.data, split, args.out)
    else:
        look(args)


if __name__ == "__main__":
    main()
