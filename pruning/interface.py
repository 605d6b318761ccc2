"""A pruning in a few lines of Python, which the README shows: the steps of a recipe as functions, with its defaults."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import finalize

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import nn

from pruning import calibration, models
from pruning.allocation import CostModel
from pruning.allocation import allocate as solve
from pruning.allocation import choose_blocks as refine
from pruning.calibration.rounds import Rounds
from pruning.data import ImageData, NoisedBatches, open_images
from pruning.errors import PruningError, shown
from pruning.groups import find_groups
from pruning.groups.modulation import modulation_layers
from pruning.hook import hooked
from pruning.importance import single_changes
from pruning.models.pipelines import modules_of
from pruning.models.running import device_of, dtype_of
from pruning.recording import record
from pruning.recording.conditions import call_for_images, conditions_of, open_image_calls
from pruning.recording.images import ImageCalls, noised_images
from pruning.sampling import PixelPipeline
from pruning.settings import Calibrate, Depth, Prune, Target
from pruning.surgery import RANK_NEEDS, LowRank, choose_ranks, needs_for
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, Scores, config_hash, config_of


def load(
    source: str,
    *,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> tuple[ModelMixin, SchedulerMixin | None]:
    """Load a denoiser, pruned or not, in evaluation mode, and the scheduler that it was trained with, None without one.

    Args:
        source: ``bundled:models/<name>``, a folder of a pipeline or of a denoiser, or a hub id.
        subfolder: Folder of the denoiser inside `source`; None looks for ``unet/`` and ``transformer/``.
        dtype: Type the weights are held in.
        device: Where the model goes.
        revision: Branch, tag or commit on the hub.
        variant: Weight variant, e.g. ``fp16``.

    Raises:
        PruningError: If there is no such model, or one of both cannot be read.
    """
    where = {"subfolder": subfolder, "revision": revision, "variant": variant}
    with hooked():
        model = models.load_denoiser(source, dtype=dtype, device=device, **where)
    return model, models.find_scheduler(source, revision=revision)


def image_calls(
    model: nn.Module,
    scheduler: Any,
    data: str | ImageData,
    *,
    split: str = "train",
    images: int | Sequence[int] | None = None,
    pipeline: DiffusionPipeline | None = None,
    call: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
) -> ImageCalls:
    """Return images as the model's pipeline would show them to it; for `noised_images` and `recover_images`.

    The pipeline is recorded (`record`), its model runs about ten times to learn how it is called.

    Args:
        model: The denoiser.
        scheduler: Its scheduler; with `pipeline` that one's is taken.
        data: ``digits``, an image folder, a parquet file or folder, a hub id, or images that are open already.
        split: Split of `data`.
        images: Rows of it, or how many of the first; None: all.
        pipeline: The pipeline around the model, where that works on latents or is told texts.
        call: What the pipeline's call is given; ``num_inference_steps`` says how many noise levels there are, 100 where
            nothing does.
        folder: Where the recording is kept; None: nowhere.
        seed: Of the pipeline's own draws.

    Raises:
        PruningError: If the data cannot be read or are too few, or the pipeline cannot be recorded.
    """
    whole: Any = PixelPipeline(model, scheduler) if pipeline is None else pipeline
    name = next((name for name, part in modules_of(whole).items() if part is model), None)
    if name is None:
        raise PruningError(
            f"pipeline: {type(whole).__name__} holds another {type(model).__name__}; give its own model"
        )
    if isinstance(data, str):
        channels, resolution = models.pixel_shape(model, pipeline)
        data = open_images(data, split=split, channels=channels, resolution=resolution)
    if not isinstance(images, Sequence):
        images = range(len(data) if images is None else images)
    if not len(images):
        raise PruningError(f"{data.name}: no image asked; give at least one")
    data.check_enough(max(images) + 1)
    conditions = conditions_of(type(whole), model, data, images)
    asked = call_for_images(type(whole), whole.scheduler, call or {})
    kept = TemporaryDirectory()
    place = Path(kept.name if folder is None else folder)
    record(whole, conditions.inputs, place, call=asked, seed=seed, for_images=True)
    found = open_image_calls(place, whole, name, data, images, conditions)
    finalize(found.calls, kept.cleanup)
    return found


def noised_batches(
    model: ModelMixin,
    scheduler: Any,
    data: str | ImageData,
    *,
    split: str = "train",
    samples: int = 256,
    batch_size: int = 32,
    timestep_buckets: int = 8,
    seed: int = 0,
    pipeline: DiffusionPipeline | None = None,
    conditional: bool = True,
) -> NoisedBatches:
    """Return images noised to every range of timesteps, to be gone through as often as needed.

    Args:
        model: The denoiser.
        scheduler: Its scheduler.
        data: ``digits``, an image folder, a parquet file or folder, a hub id, or images that are open already.
        split: Split of `data`.
        samples: Images, the first ones of the split.
        batch_size: Images per call; does not change the result.
        timestep_buckets: T.
        seed: Of the noise and the timesteps.
        pipeline: The pipeline around the model, where that works on latents or is told texts.
        conditional: With the images' labels or captions; else as guidance asks a model without.

    Raises:
        PruningError: As `image_calls`, and if a number is none.
    """
    given = {"samples": samples, "batch_size": batch_size, "timestep_buckets": timestep_buckets, "seed": seed}
    for name, value in given.items():
        if not hasattr(value, "__index__"):
            raise PruningError(f"{name}: {shown(value)} is a {type(value).__name__}; expected a whole number")
    source = image_calls(
        model, scheduler, data, split=split, images=int(samples), pipeline=pipeline, seed=int(seed)
    )
    return noised_images(
        source,
        batch_size=int(batch_size),
        timestep_buckets=int(timestep_buckets),
        seed=int(seed),
        conditional=conditional,
        device=device_of(model),
        dtype=dtype_of(model),
    )


def calibrate(
    model: ModelMixin,
    groups: Sequence[PrunableGroup],
    batches: NoisedBatches,
    *,
    for_: str | Collection[str],
    settings: Calibrate | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    announce: Callable[[Rounds], None] | None = None,
) -> CalibrationStats:
    """Measure what the model does on noised images, as far as criteria and compensations read it.

    It takes as many rounds over the images as memory asks for (`settings.memory_gb`); the outcome does not depend on
    it.

    Args:
        model: The denoiser; it does not change.
        groups: What may be removed.
        batches: What it is shown.
        for_: Name or names of criteria and compensations, e.g. ``("probe_obs", "least_squares")``.
        settings: How it is measured: queries, rows, timestep weights, sink weights, memory. None takes the defaults.
        seed: Of all draws.
        folder: Where the statistics go, and are read from when they are asked for; what an interrupted attempt of the
            same calibration left there is not measured again. None: they stay in memory.
        announce: Told how many rounds there are, before the first.

    Raises:
        PruningError: For an unknown name, a setting out of range, too little memory, or NaN, naming module, sample and
            timesteps.
    """
    if settings is not None:
        settings.check("calibration")
    needs, variants = needs_for(for_, groups)
    memory = None if settings is None else settings.memory
    return calibration.calibrate(
        model,
        groups,
        batches,
        needs=needs,
        variants=sorted(variants),
        settings=settings,
        seed=seed,
        memory=memory,
        folder=None if folder is None else Path(folder),
        announce=announce,
    )


def modulation_forms(
    model: nn.Module,
    batches: NoisedBatches | Sequence[NoisedBatches],
    held_out: NoisedBatches | Sequence[NoisedBatches],
    *,
    error: float = 1e-3,
    multiple: int = 1,
    seed: int = 0,
) -> dict[str, LowRank]:
    """Choose the low-rank forms of a model's modulation layers; `take_low_rank` gives them to it.

    Args:
        model: The dense model; it does not change.
        batches: What it is shown; of a model that is guided, also batches without labels or captions.
        held_out: Others, by which the loss is counted.
        error: Largest share of the variance of a layer's outputs that may be lost.
        multiple: Ranks are multiples of it.
        seed: Of all draws.

    Returns:
        The forms by path, of those layers in which they save parameters.

    Raises:
        PruningError: As `choose_ranks`, and for NaN, naming module, sample and timesteps.
    """
    layers = modulation_layers(model, find_groups(model))

    def seen(shown: NoisedBatches | Sequence[NoisedBatches]) -> CalibrationStats:
        parts = [shown] if isinstance(shown, NoisedBatches) else list(shown)
        return calibration.calibrate(model, layers, NoisedBatches.joined(parts), needs=RANK_NEEDS, seed=seed)

    found = choose_ranks(model, layers, seen(batches), seen(held_out), error, multiple) if layers else {}
    return {path: form for path, form in found.items() if form is not None}


def allocate(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    scores: Scores | None,
    *,
    macs: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    settings: Prune | None = None,
    ranks: Mapping[str, int] | None = None,
) -> PruningPlan:
    """Decide which units stay, so that exactly one of `macs`, `params` and `ratio` is hit.

    Args:
        model: The dense model, on any device.
        groups: What may be removed.
        scores: Importance of every unit; None takes the same share from every group (with ``scope="local"``).
        macs: Fraction of the multiply-accumulates of one call that remains.
        params: Fraction of the parameters that remains.
        ratio: Fraction of the prunable parameters that is removed.
        settings: From where units go: scope, limits, rounding; its target is not read. None takes the defaults.
        ranks: Of the layers that take a low-rank form, by path (of `modulation_forms`); they count towards the target.

    Raises:
        PruningError: For a value out of range, or a target that cannot be reached (the message names what can be).
    """
    settings = replace(settings or Prune(), target=Target(macs=macs, params=params, ratio=ratio))
    settings.check("allocate")
    for_recipes = settings.modulation_error is not None or settings.share_embedders or settings.depth.budget
    if for_recipes or settings.candidates > 1:
        raise PruningError(
            "allocate: modulation_error, share_embedders, depth and candidates are for recipes; from Python use "
            "modulation_forms, PruningPlan.shared, choose_blocks and allocation.candidates.candidate_plan"
        )
    cost = CostModel.trace(model, models.example_call(model, 1), find_groups(model))
    start = PruningPlan(base_hash=config_hash(config_of(model)), ranks=dict(ranks or {}))
    return solve(groups, scores, cost, settings, start=start)


def choose_blocks(
    model: ModelMixin,
    groups: Sequence[PrunableGroup],
    scores: Scores | None,
    plan: PruningPlan,
    batches: NoisedBatches,
    *,
    budget: int = 50,
    settings: Prune | None = None,
    weights: str | Sequence[float] = "uniform",
) -> tuple[PruningPlan, dict[str, Any]]:
    """Choose the blocks of a plan anew, by measuring how the model's output changes when they go together.

    Args:
        model: The dense model; it does not change.
        groups: What may be removed, blocks among it.
        scores: Those that `allocate` made the plan of.
        plan: Result of `allocate`; its target and scope are kept.
        batches: What the model is shown; a set of blocks costs one forward per batch. They are held in memory.
        budget: Most sets that are measured.
        settings: Those that `allocate` was given; its target, scope and `depth` are not read. None takes the defaults.
        weights: Of the timesteps: ``uniform``, ``obs_diff``, or T positive numbers.

    Returns:
        A plan that is as near to the target and never worse on what was measured, and what was measured; see
        `pruning.allocation.search_depth`.

    Raises:
        PruningError: For values out of range, a plan that `allocate` did not make, or NaN, naming the blocks, samples
            and timesteps.
    """
    if missing := {"target", "scope", "goal", "got"} - plan.meta.keys():
        raise PruningError(
            f"choose_blocks: the plan does not say its {', '.join(sorted(missing))}; give one that `allocate` returned"
        )
    asked = {
        "target": Target(**plan.meta["target"]),
        "scope": plan.meta["scope"],
        "depth": Depth(budget=budget),
    }
    settings = replace(settings or Prune(), kinds=sorted({group.kind for group in groups}), **asked)
    settings.check("choose_blocks")
    cost = CostModel.trace(model, models.example_call(model, 1), find_groups(model))
    effect = calibration.OutputChange(model, groups, batches, weights=weights)
    alone = single_changes(scores, groups) if scores is not None else None
    found, trace = refine(groups, scores, cost, settings, plan, effect, alone=alone)
    return found, {**trace, "forwards": effect.forwards, "power": effect.power}
