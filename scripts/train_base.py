r"""Train a small base model from scratch: the denoisers of the quickstart, or one on other images.

    python scripts/train_base.py digits-dit  --out recipes/models/digits-dit
    python scripts/train_base.py digits-unet --out recipes/models/digits-unet

Runs on CPU (about half an hour on one core) or a GPU. Every `--checkpoint-every` steps the whole state is written
to the `--work` folder; the same command goes on from there after a kill, with the same losses. On other images:

    python scripts/train_base.py digits-dit --data train.parquet --resolution 32 --out runs/base/fashion-dit \
        --set sample_size=32 num_layers=8
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from pruning.data import ImageData, noise_and_target, open_images, sample_generator
from pruning.models.families import config_of, denoise, denoiser_call, null_class, num_classes, sample_shape

log = logging.getLogger("train_base")

Batch = Callable[[ImageData, nn.Module, Any, int, argparse.Namespace], tuple[dict[str, Any], Tensor]]
"""(data, model, scheduler, step, args) -> call and target of one training step."""

PRESETS: dict[str, dict[str, Any]] = {
    "digits-dit": {
        "folder": "transformer",
        "class": "DiTTransformer2DModel",
        "model": {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 1,
            "out_channels": 1,
            "num_attention_heads": 8,
            "attention_head_dim": 16,
            "num_layers": 6,
            "num_embeds_ada_norm": 10,
        },
        "scheduler": {
            "prediction_type": "v_prediction",
            "beta_schedule": "squaredcos_cap_v2",
            "timestep_spacing": "trailing",
            "clip_sample": True,
        },
        "steps": 3500,
    },
    "digits-unet": {
        "folder": "unet",
        "class": "UNet2DModel",
        "model": {
            "sample_size": 16,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [32, 64, 128],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 16,
            "norm_num_groups": 8,
            "num_class_embeds": 10,
        },
        "scheduler": {
            "prediction_type": "epsilon",
            "beta_schedule": "linear",
            "timestep_spacing": "trailing",
            "clip_sample": True,
        },
        "steps": 3000,
    },
}


def build(preset: dict[str, Any], overrides: dict[str, Any], seed: int) -> tuple[nn.Module, Any]:
    """Return the untrained model, its gates closed (AdaLN-Zero: Peebles and Xie 2022), and its scheduler."""
    torch.manual_seed(seed)  # diffusers draws first weights from the global generator
    model = getattr(diffusers, preset["class"])(**{**preset["model"], **overrides})
    if preset["class"] == "DiTTransformer2DModel":
        closed = [block.norm1.linear for block in model.transformer_blocks]
        for layer in [*closed, model.proj_out_1, model.proj_out_2]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for module in model.modules():
            if isinstance(module, LabelEmbedding):
                nn.init.normal_(module.embedding_table.weight, std=0.02)
    return model, diffusers.DDIMScheduler(num_train_timesteps=1000, **preset["scheduler"])


def check_fit(model: nn.Module, data: ImageData) -> None:
    """Stop unless images and classes of `data` fit the model."""
    classes = num_classes(model)
    if data.shape != sample_shape(model):
        raise SystemExit(
            f"{data.name}: images {data.shape}, model {sample_shape(model)}; change --resolution or --set"
        )
    if classes is not None and (data.num_classes is None or data.num_classes > classes):
        raise SystemExit(
            f"{data.name}: {data.num_classes} classes, model {classes}; change --label-column or --set"
        )


def train_mode(model: nn.Module) -> None:
    """Set training mode, but keep label embeddings in eval mode: they would drop labels block by block."""
    model.train()
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up, then a cosine to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def noised_step(
    data: ImageData, scheduler: Any, step: int, args: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return rows, noised images, targets, timesteps and dropped conditions of one step.

    All draws come from (seed, step), so a resumed run repeats none.
    """
    generator = sample_generator(args.seed, step)
    rows = torch.randint(len(data), (args.batch_size,), generator=generator)
    x0 = data.images(rows)
    total = scheduler.config.num_train_timesteps
    stratum = (
        torch.arange(args.batch_size) + torch.rand(args.batch_size, generator=generator)
    ) / args.batch_size
    t = (stratum * total).long().clamp(max=total - 1)
    noise = torch.randn(x0.shape, generator=generator)
    drop = torch.rand(args.batch_size, generator=generator) < args.label_dropout
    return rows, *noise_and_target(scheduler, x0, noise, t), drop


def batch_of_step(
    data: ImageData, model: nn.Module, scheduler: Any, step: int, args: argparse.Namespace
) -> tuple[dict[str, Any], Tensor]:
    """Return call and target of one step of a model of classes, or of nothing."""
    rows, x_t, target, model_t, drop = noised_step(data, scheduler, step, args)
    conditioning: dict[str, Any] = {}
    if num_classes(model) is not None:
        labels = data.labels(rows)
        if labels is None:
            raise SystemExit(
                f"{data.name} has no labels, and the model is class-conditional: give --label-column"
            )
        empty = null_class(model)
        if empty is not None:
            labels = torch.where(drop, torch.full_like(labels, empty), labels)
        conditioning["class_labels"] = labels.to(args.device)
    call = denoiser_call(model, x_t.to(args.device), model_t.to(args.device), conditioning)
    return call, target.to(args.device)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the training state under a temporary name, then rename, so that a kill leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(
    model: nn.Module,
    scheduler: Any,
    data: ImageData,
    args: argparse.Namespace,
    *,
    batch: Batch = batch_of_step,
    penalty: Callable[[], Tensor] | None = None,
) -> dict[str, Any]:
    """Train with AdamW and keep an average of the weights; `model` ends with the averaged ones.

    Args:
        model: The denoiser.
        scheduler: Noises the images.
        data: Images to train on.
        args: As from `parse`; a resumed run must have the same.
        batch: Makes the call and the target of a step.
        penalty: Called after each forward; what it returns is added to the loss.

    Returns:
        ``final_loss``, the running denoising loss, and ``seconds``.
    """
    model.to(args.device)
    train_mode(model)
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    path, asked = (
        args.work / "state.pt",
        {k: str(v) for k, v in vars(args).items() if k not in ("out", "work", "device", "checkpoint_every")},
    )
    first, seconds, running = 0, 0.0, float("nan")
    if path.exists():
        state = torch.load(path, map_location=args.device, weights_only=True)
        if state["args"] != asked:
            raise SystemExit(
                f"{path} is of a run with other settings: {state['args']}; remove it or change --work"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        first, seconds, running = state["step"], state["seconds"], state["loss"]
        log.info("going on from step %d of %s", first, path)
    start = time.time() - seconds
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.warmup, args.lr)
        call, target = batch(data, model, scheduler, step, args)
        loss = (denoise(model, call) - target).square().mean()
        if not math.isfinite(loss.item()):
            raise SystemExit(
                f"loss is {loss.item()} at step {step}; lower --lr (state of the last save: {path})"
            )
        optimizer.zero_grad()
        total = loss if penalty is None else loss + penalty()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        done = step + 1
        if done % 50 == 0:
            rate = done * args.batch_size / (time.time() - start)
            added = f" + {(total - loss).item():.4f}" if penalty is not None else ""
            log.info("step %d/%d loss %.4f%s, %.0f images/s", done, args.steps, running, added, rate)
        if done % args.checkpoint_every == 0 or done == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            state |= {"step": done, "seconds": time.time() - start, "loss": running, "args": asked}
            save_state(path, state)
    for p, mean in zip(parameters, average, strict=True):
        p.data.copy_(mean)
    return {"final_loss": running, "seconds": round(time.time() - start, 1)}


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--work", type=Path, default=None, help="state for resuming; default runs/base/<preset>"
    )
    parser.add_argument(
        "--data", default="digits", help="'digits', a parquet file, an image folder or a hub id"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--image-column", default=None)
    parser.add_argument("--label-column", default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="change the model's config")
    parser.add_argument("--steps", type=int, default=None, help="default: the preset's")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint-every", type=int, default=250)
    args = parser.parse_args()
    args.steps = args.steps or PRESETS[args.preset]["steps"]
    args.work = args.work or Path("runs/base") / args.preset
    return args


def main() -> None:
    """Train, then write the averaged weights in bfloat16 with the scheduler and the numbers of the training."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    preset = PRESETS[args.preset]
    overrides = {key: json.loads(value) for key, _, value in (entry.partition("=") for entry in args.set)}
    model, scheduler = build(preset, overrides, args.seed)
    data = open_images(
        args.data,
        split=args.split,
        channels=config_of(model)["in_channels"],
        resolution=args.resolution,
        image_column=args.image_column,
        label_column=args.label_column,
    )
    check_fit(model, data)
    numbers = train(model, scheduler, data, args)
    cast(Any, model.eval().to("cpu", torch.bfloat16)).save_pretrained(args.out / preset["folder"])
    scheduler.save_pretrained(args.out / "scheduler")
    numbers |= {
        "preset": args.preset,
        "data": data.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "ema": args.ema,
        "label_dropout": args.label_dropout if null_class(model) is not None else 0.0,
        "seed": args.seed,
        "device": args.device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    (args.out / "training.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
