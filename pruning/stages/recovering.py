"""Stage ``recover``: train the slim model back; the only one that all processes of a launch work on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import ModelMixin

from pruning import checkpoint, models, recovery
from pruning.files import write_json
from pruning.settings import NOISED
from pruning.stages.imaging import enters_by_recording, image_calls
from pruning.stages.run import MODEL, Run
from pruning.stages.sampling import component
from pruning.stages.showing import RECORDED, recorded, recovery_provider, source_of
from pruning.stages.stage import IMAGES, Stage, pick
from pruning.store import SCRATCH


def shown_to_train(run: Run) -> dict[str, Any]:
    """Return what says on what the slim model is trained: keys of images or of recorded calls."""
    provider = recovery_provider(run)
    keys = IMAGES if provider == NOISED else RECORDED
    if provider == NOISED and not models.is_known(run.meta):  # shown within recorded calls
        keys = (*IMAGES, *RECORDED)
    return {"recover.provider": provider, **pick(run.recipe, keys)}


@partial(
    Stage,
    "recover",
    after=("prune",),
    reads=("seed", "model.dtype", "recover"),
    extra=lambda run: {"recover.warmup_steps": run.recipe.recover.warmup, **shown_to_train(run)},
    resumable=True,
    on_all_ranks=True,
)
def recover(run: Run, folder: Path) -> dict[str, Any]:
    """Train with the data and the dense model as teacher; goes on from the last checkpoint."""
    section = run.recipe.recover
    if not section.enabled:
        return {"enabled": False}
    student = run.load_pruned("prune", torch.float32)
    how: dict[str, Any] = {
        "seed": run.recipe.seed,
        "folder": folder / SCRATCH / "checkpoints",
        "device": run.device.type,
        "progress": _progress(run),
    }
    provider = recovery_provider(run)
    if provider == NOISED:
        teacher = run.dense if section.distill_weight != 0 else None
        result = _on_images(run, student, teacher, how)
    else:
        calls, count = recorded(run, section.num_samples), section.num_samples
        where = {"denoiser": component(run), "source": source_of(provider), "samples": range(count)}
        result = recovery.recover_recorded(student, run.dense, calls, section, **where, **how)
    if run.ranks.is_first:
        checkpoint.save(student, folder / MODEL)
        steps, losses = [step for step, _ in result.losses], [loss for _, loss in result.losses]
        write_json(folder / "losses.json", {"steps": steps, "loss": losses})
    return {
        "enabled": True,
        "steps": result.steps,
        "images_per_second": round(result.images_per_second, 1),
        "last_loss": result.losses[-1][1] if result.losses else None,
        "seconds_training": round(result.seconds, 1),
    }


def _on_images(
    run: Run, student: ModelMixin, teacher: ModelMixin | None, how: dict[str, Any]
) -> recovery.RecoveryResult:
    """Train on the images of the data. Of texts a recording holds each, so that only some images are taken."""
    section, split = run.recipe.recover, run.recipe.data.split
    data = run.images(split)
    if not enters_by_recording(run):
        return recovery.recover(student, teacher, data, run.conditioner, run.scheduler, section, **how)
    has_texts = "prompt" in models.call_parameters(run.pipeline_class)
    rows = run.choose(split, min(section.num_samples, len(data))) if has_texts else range(len(data))
    found = image_calls(run, split, rows)
    source = replace(
        found,
        latents=lambda numbers: found.latents([rows[number] for number in numbers]),
        condition=lambda number: found.condition(rows[number]),
    )
    return recovery.recover_images(student, teacher, source, len(rows), section, **how)


def _progress(run: Run) -> Callable[[recovery.RecoveryProgress], None]:
    """Return what shows each step, with the mean loss of the last ones."""
    losses: deque[float] = deque(maxlen=20)

    def show(info: recovery.RecoveryProgress) -> None:
        losses.append(info.loss)
        more = f"loss {fmean(losses):.4f}, {info.images_per_second:.0f} images/s"
        run.bars("training", info.step, info.steps, more)

    return show
