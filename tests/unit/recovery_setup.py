"""A tiny recovery run, for the tests and for the process that one of them kills."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from pruning.data import ImageData
from pruning.data.images import cached_images
from pruning.interface import image_calls
from pruning.recording.images import ImageCalls
from pruning.recovery import RecoveryResult, checkpoints, recover_images
from pruning.settings import Recover
from tests.models import dit


def small(seed: int = 0, **changes: Any) -> nn.Module:
    """A DiT of two heads and two layers; `seed` varies its weights."""
    model = dit(num_attention_heads=2, num_layers=2, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def stripes(length: int = 24, size: int = 8) -> ImageData:
    """Grey images of ten classes: class c is a ramp whose slope grows with c, with a brightness by index."""
    ramp = torch.linspace(-1, 1, size).expand(1, size, size)

    def fetch(index: int) -> Tensor:
        return (ramp * (index % 10) / 10 + 0.02 * index).clamp(-1, 1)

    return ImageData("stripes", (1, size, size), length, fetch, fetch_label=lambda index: index % 10)


def run(
    student: nn.Module,
    teacher: nn.Module | None,
    data: ImageData | None = None,
    scheduler: Any = None,
    **changes: Any,
) -> RecoveryResult:
    """Recover with small settings; `changes` are knobs of `Recover` or arguments of `recover_images`."""
    knobs: dict[str, Any] = {
        "steps": 8,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "keep_checkpoints": 2,
        "ema_decay": 0.999,
    }
    names = {field.name for field in dataclasses.fields(Recover)}
    settings = Recover(**{**knobs, **{key: value for key, value in changes.items() if key in names}})
    others = {
        "seed": 5,
        "device": "cpu",
        **{key: value for key, value in changes.items() if key not in names},
    }
    scheduler = DDIMScheduler() if scheduler is None else scheduler
    source = shown(teacher or student, scheduler, stripes() if data is None else data)
    return recover_images(student, teacher, source, settings, **others)


_SHOWN: dict[str, ImageCalls] = {}


def shown(model: Any, scheduler: Any, data: ImageData) -> ImageCalls:
    """Images within recorded calls, which all models of an architecture share."""
    architecture = type(model).__name__, dict(model.config), type(scheduler).__name__, dict(scheduler.config)
    key = repr((architecture, data.name, len(data), data.shape))
    if key not in _SHOWN:
        _SHOWN[key] = image_calls(model, scheduler, data)
    return replace(_SHOWN[key], read=cached_images(data))


def weights(model: nn.Module) -> Tensor:
    """All parameters in one vector, a copy."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _main(folder: str, changes: str) -> None:
    """Run with dropout in the model, and die while the optimiser's moments of step 6 are being written."""
    write = checkpoints.save_file

    def save_file(tensors: dict[str, Tensor], path: Path) -> None:
        write(tensors, path)
        if "step-00000006" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(path.read_bytes()[:-100])
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = save_file
    run(small(seed=1, dropout=0.2), small(dropout=0.2), folder=folder, **json.loads(changes))


if __name__ == "__main__":
    _main(*sys.argv[1:])
