"""Stage ``recover``: train the slim model back; all processes of a launch do so."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

from eval.media import pictures
from pruning import checkpoint, models, recovery
from pruning.files import remove, write_json, written_whole
from pruning.models.widening import widened
from pruning.recording.images import ImageCalls
from pruning.recovery.blocks import BlocksResult
from pruning.recovery.lengths import BY_DECAY
from pruning.sampling import PixelPipeline
from pruning.settings import NOISED
from pruning.stages.imaging import ASKED, image_calls
from pruning.stages.placement import MODEL
from pruning.stages.run import Run
from pruning.stages.sampling import component, sampler
from pruning.stages.showing import (
    RECORDED,
    recorded,
    recovery_provider,
    shown_in_training,
    source_of,
    trained_samples,
)
from pruning.stages.stage import IMAGES, Stage, pick
from pruning.store import SCRATCH
from pruning.surgery import cut_on_disk
from pruning.types import PruningPlan

logger = logging.getLogger(__name__)

BLOCKS = "blocks"
LOSSES, VALIDATION = "losses.json", "validation.safetensors"
PICTURES = "pictures"
LOGS = "logs"
"""Folder of the run directory in which a tracker writes."""

VALIDATED = (
    "data.eval_split",
    "data.caption_column",
    "pipeline",
    "evaluate.num_steps",
    "evaluate.sampler",
    "evaluate.guidance_scale",
)
"""Keys that say what the slim model makes at evaluations, beside those of what it is trained on."""

CAPTIONS = 4096
"""Most captions that are recorded for training where nobody says how many: half a gigabyte of Stable Diffusion 1.5."""


def shown_to_train(run: Run) -> dict[str, Any]:
    """Return what says on what the slim model is trained: keys of images or of recorded calls."""
    provider = recovery_provider(run)
    keys = RECORDED
    if provider == NOISED:
        keys = IMAGES if run.pipeline_class is PixelPipeline else (*IMAGES, *ASKED)
    sampled = VALIDATED if run.recipe.recover.validation_images else ()
    keys = (*keys, *(key for key in sampled if key not in keys))
    return {"recover.provider": provider, "recover.method": method_of(run), **pick(run.recipe, keys)}


def method_of(run: Run) -> str:
    """Return how the slim model is trained back, with null resolved."""
    return run.recipe.recover.method or (BLOCKS if run.placement.streams else "whole")


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
    if method_of(run) == BLOCKS:
        return _by_blocks(run, folder)
    student = run.load_pruned("prune", torch.float32)
    how: dict[str, Any] = {
        "features": recovery.pairs(run.meta, run.cut_plan) if section.feature_weight else None,
        "seed": run.recipe.seed,
        "folder": folder / SCRATCH / "checkpoints",
        "device": run.device.type,
        "progress": _progress(run),
        "validate": partial(_validate, run, folder / SCRATCH / "validation")
        if section.validation_images
        else None,
        "logs": run.folder.path / LOGS,
    }
    provider = recovery_provider(run)
    if provider == NOISED:
        teacher = run.reference if section.distill_weight != 0 or section.feature_weight else None
        result = recovery.recover_images(student, teacher, _images(run), section, **how)
    else:
        count = trained_samples(run)
        calls = recorded(run, count)
        where = {"denoiser": component(run), "source": source_of(provider), "samples": range(count)}
        result = recovery.recover_recorded(student, run.reference, calls, section, **where, **how)
    if run.ranks.is_first:
        checkpoint.save(student, folder / MODEL)
        write_json(folder / LOSSES, _told(result))
        if section.validation_images:
            _join(
                folder / SCRATCH / "validation", [step for step, _ in result.evaluations], folder / VALIDATION
            )
            run.release_pipeline()
    best = dict(result.evaluations).get(result.best_step or -1)
    return {
        "enabled": True,
        "steps": result.steps,
        "images_per_second": round(result.images_per_second, 1),
        "last_loss": result.losses[-1][1] if result.losses else None,
        "seconds_training": round(result.seconds, 1),
        **({"best_step": result.best_step, "held_out_loss": best} if result.best_step is not None else {}),
        **({"average": result.average} if result.average else {}),
    }


def _told(result: recovery.RecoveryResult) -> dict[str, Any]:
    """Return what the report shows of a training: losses by step, and those of evaluations, if there were any."""
    told: dict[str, Any] = {
        "steps": [step for step, _ in result.losses],
        "loss": [loss for _, loss in result.losses],
    }
    if result.evaluations:
        told["held_out"] = {
            "steps": [step for step, _ in result.evaluations],
            "loss": [loss for _, loss in result.evaluations],
        }
    if result.lengths is not None:
        told["lengths"] = result.lengths
    if result.best_step is not None and result.average in (None, BY_DECAY):
        told["best_step"] = result.best_step
    return told


def _validate(run: Run, folder: Path, student: Any, step: int) -> None:
    """Let the student make the first samples of the evaluation, and keep pictures of them."""
    count = run.recipe.recover.validation_images
    section = replace(run.recipe.evaluate, num_samples=count)
    run.bars("validation images", 0, 1)
    with _in_type(student, run.dtype):
        found = sampler(run, student, section)(range(count))
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / f"{step:08d}.safetensors") as temporary:
        save_file({PICTURES: pictures(found).contiguous()}, temporary)
    run.bars("validation images", 1, 1)


@contextmanager
def _in_type(student: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a model of float32 take and give what one of `dtype` would, as the parts of a pipeline around it expect."""
    if dtype == torch.float32:
        yield
        return

    def widen(_: torch.nn.Module, *given: Any) -> Any:
        return tree_map_only(Tensor, partial(widened, dtype=torch.float32), given)

    def narrow(_: torch.nn.Module, args: Any, output: Any) -> Any:
        return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, output)

    with ExitStack() as stack:
        stack.callback(student.register_forward_pre_hook(widen, with_kwargs=True).remove)
        stack.callback(student.register_forward_hook(narrow).remove)
        yield


def _join(folder: Path, steps: Iterable[int], path: Path) -> None:
    """Write one file of the pictures of all evaluations, (E, K, C, H, W), and their steps (E,)."""
    files = [(step, folder / f"{step:08d}.safetensors") for step in steps]
    found = [(step, load_file(file)[PICTURES]) for step, file in files if file.is_file()]
    numbers = torch.tensor([step for step, _ in found])
    save_file({"steps": numbers, PICTURES: torch.stack([images for _, images in found])}, path)


def _by_blocks(run: Run, folder: Path) -> dict[str, Any]:
    """Train each cut block by itself; what was trained goes into a copy of the slim model, from disk to disk."""
    section, twins = run.recipe.recover, recovery.twins(run.meta, run.cut_plan)
    batch_size = max(1, section.batch_size // section.gradient_accumulation)
    found = BlocksResult((), {})
    if twins:
        found = recovery.recover_blocks(
            run.load_pruned("prune"),
            run.dense,
            twins,
            shown_in_training(run, batch_size),
            section,
            folder=folder / SCRATCH / "blocks",
            identity={},  # the folder is that of the stage's key
            seed=run.recipe.seed,
            device=run.device.type,
            progress=_progress(run),
        )
    else:
        logger.warning(
            "recover: no block that is left lost anything, so none is trained and the model stays as it was cut; "
            "recover.method=whole trains it as one"
        )
    remove(folder / MODEL)
    cut_on_disk(run.result("prune").folder / MODEL, PruningPlan(), folder / MODEL, changed=found.changed)
    told = ("block", "before", "after", "kept")  # no times, for equal models come with equal files
    blocks = [{key: getattr(block, key) for key in told} for block in found.blocks]
    by_step = zip_longest(*(block.losses for block in found.blocks))  # some may have had no time for all
    losses = [fmean(loss for loss in step if loss is not None) for step in by_step]
    steps = [*range(1, len(losses) + 1)]
    write_json(folder / LOSSES, {"steps": steps, "loss": losses, "blocks": blocks})
    return {
        "enabled": True,
        "method": BLOCKS,
        "steps": len(losses),
        "blocks": len(found.blocks),
        "blocks_kept": sum(block.kept for block in found.blocks),
        "error_before": _mean(block.before for block in found.blocks),
        "error_after": _mean(block.after if block.kept else block.before for block in found.blocks),
        "seconds_training": round(sum(block.seconds for block in found.blocks), 1),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = [*values]
    return fmean(found) if found else None


def _images(run: Run) -> ImageCalls:
    """Return the images that are trained on; with captions only some, for each of them is recorded."""
    data, section = run.images(run.recipe.data.split), run.recipe.recover
    if "prompt" not in models.call_parameters(run.pipeline_class) or data.fetch_caption is None:
        return image_calls(run, run.recipe.data.split, range(len(data)))
    drawn = section.num_samples or min(CAPTIONS, section.steps * section.batch_size)
    return image_calls(run, run.recipe.data.split, run.choose(run.recipe.data.split, min(drawn, len(data))))


def _progress(run: Run) -> Callable[[recovery.RecoveryProgress], None]:
    """Return what shows each step, with the mean loss of the last ones."""
    losses: deque[float] = deque(maxlen=20)

    def show(info: recovery.RecoveryProgress) -> None:
        losses.append(info.loss)
        more = f"loss {fmean(losses):#.3g}, {info.images_per_second:.0f} images/s"
        if info.held_out is not None:
            more += f", held out {info.held_out:#.3g}"
        run.bars("training", info.step, info.steps, more)

    return show
