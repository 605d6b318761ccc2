"""Everything that can be known cheaply, checked before the first expensive stage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.features import inception_is_here, load_features
from eval.networks import check_network, load_network
from eval.run import check_metrics, fewest_images, networks_of
from eval.run import needs_of as metric_needs
from pruning.calibration.attention.sites import is_attention
from pruning.calibration.observer import ALWAYS, STATISTICS
from pruning.calibration.seeing import Attention
from pruning.data import ImageData, check_classes
from pruning.data.batches import check_buckets
from pruning.data.prompts import check_text, place_of
from pruning.errors import PruningError, named
from pruning.importance import check_kinds, needs_of
from pruning.models import (
    call_parameters,
    is_known,
    num_classes,
    pixels_per_latent,
    resolve_source,
    sample_shape,
    takes_pixels,
)
from pruning.recovery import (
    check_by_blocks,
    check_checkpointing,
    check_optimizer,
    check_split,
    check_tracker,
    checked_on_calls,
)
from pruning.recovery.held_out import split
from pruning.sampling import PixelPipeline, check_sampler, scheduler_named, value_of
from pruning.sampling.arguments import STEPS
from pruning.settings import DIGITS, NOISED, SAMPLING, Calibrate, Evaluate, Prune
from pruning.stages import smaller_forms, targets
from pruning.stages.calibration import check_guidance, timestep_weights
from pruning.stages.candidates import candidates_of, targetless
from pruning.stages.caveats import caveats
from pruning.stages.folder import STAGES
from pruning.stages.imaging import call_of
from pruning.stages.planning import hushed, make_plan
from pruning.stages.recovering import BLOCKS, method_of
from pruning.stages.rehearsal import rehearse
from pruning.stages.room import check_room, needed_bytes
from pruning.stages.run import Run, device_named, image_shape
from pruning.stages.sampling import check_call, steps_of
from pruning.stages.showing import (
    check_recording,
    is_recorded,
    recovery_provider,
    source_of,
    trained_samples,
    training_samples,
)

logger = logging.getLogger(__name__)

FEW_PROMPTS = 10
"""Held-out prompts, below which it is said that many samples have the same."""


def preflight(run: Run, stages: Sequence[str]) -> None:
    """Check names, model, target, data, memory and disk for the stages that are to run.

    Raises:
        PruningError: For the first thing that cannot work, naming value, rule and place.
    """
    check_device(run)
    if "evaluate" in stages:
        check_metric_names(run)
    if run.recipe.model.start is not None:
        check_start(run)
    if run.recipe.prune.earlier:
        check_rounds(run)
    check_call(run)
    check_model(run)
    check_steps(run)
    check_guidance(run)
    check_provider(run)
    check_candidates(run)
    if "recover" in stages and run.recipe.recover.enabled:
        check_recovery(run)
    check_data(run, stages)
    if "evaluate" in stages:
        check_features(run)
    elif stages:
        _warn(look_ahead(run))
    check_room(run, needed_bytes(run, stages))
    check_weights(run, stages)
    check_measured_target(run, stages)
    if stages:
        rehearse(run, stages)
        _warn(caveats(run))


def check_start(run: Run) -> None:
    """Check that the slim model that is cut further is of the dense one, and is trained as one."""
    start, recover = run.recipe.model.start, run.recipe.recover
    check_class(run)
    slim, dense = run.meta, run.reference_meta
    if run.placement.streams:
        raise PruningError(
            f"model.start: {start!r}: the models do not fit into the memory (calibrate.memory_gb), and a slim model "
            "that is cut further cannot stay in its files"
        )
    if not recover.enabled:
        return
    if method_of(run) == BLOCKS:
        raise PruningError(
            f"recover.method: {BLOCKS} trains each block after its twin in the model that was cut, which is slim "
            "already (model.start); set recover.method=whole"
        )
    lost = {name for name, _ in dense.named_modules()} - {name for name, _ in slim.named_modules()}
    if recover.feature_weight and lost:
        raise PruningError(
            f"recover.feature_weight: {recover.feature_weight:g} compares blocks, and {start!r} (model.start) has lost "
            f"some of the dense model's, such as {min(lost)!r}; set it to 0"
        )


def check_class(run: Run) -> None:
    """Check that the slim model that is cut further is of the dense one's class."""
    slim, dense = run.meta, run.reference_meta
    if type(slim) is not type(dense):
        raise PruningError(
            f"model.start: {run.recipe.model.start!r} is a {type(slim).__name__}, and the dense model "
            f"{run.recipe.model.source!r} a {type(dense).__name__}; it must be of the same class"
        )


def check_rounds(run: Run) -> None:
    """Check before the first of several rounds what would stop the second, which cuts a slim model."""
    rounds = f"prune.earlier: {run.recipe.prune.earlier}"
    if run.placement.streams:
        raise PruningError(
            f"{rounds}: the models do not fit into the memory (calibrate.memory_gb), and a slim model that is cut "
            "further cannot stay in its files; give more memory, or leave prune.earlier out"
        )
    if method_of(run) == BLOCKS:
        raise PruningError(
            f"{rounds}: recover.method={BLOCKS} trains each block after its twin in the model that was cut, which is "
            "slim from the second round on; set recover.method=whole, or leave prune.earlier out"
        )


def check_recovery(run: Run) -> None:
    """Check that the processes can share the training, and that its inputs can give what its loss needs."""
    section, processes, provider = run.recipe.recover, run.ranks.count, recovery_provider(run)
    check_split(section, processes)
    check_tracker(section)
    check_optimizer(section)
    if (
        method_of(run) == BLOCKS
    ):  # whose twins say what to answer, whatever the loss of a whole model is made of
        if processes > 1:
            asked = section.method or "null, and the models do not fit into memory"
            raise PruningError(
                f"recover.method: {asked}: blocks are trained in one process, and {processes} were launched; start "
                "one, or set recover.method=whole"
            )
        check_by_blocks(section)
        return
    check_checkpointing(type(run.meta), section)
    if provider != NOISED:
        checked_on_calls(section, source_of(provider))
        split(range(trained_samples(run)), section, run.recipe.seed)


def look_ahead(run: Run) -> list[str]:
    """Return what would stop an evaluation, as far as that can be seen without a network and without weights."""
    found = []
    for check in (check_metric_names, check_local_features, check_local_splits):
        try:
            check(run)
        except PruningError as error:
            found.append(f"evaluate would stop at this: {error}")
    return found


def check_metric_names(run: Run) -> None:
    """Check the names of the metrics, and that they will have as many images as they take."""
    section = run.recipe.evaluate
    with named("evaluate.metrics"):
        check_metrics(section.metrics)
    fewest, metric = fewest_images(section.metrics)
    for key in ("num_samples", "num_real"):
        value = getattr(section, key)
        if value is not None and value < fewest:
            raise PruningError(
                f"evaluate.{key}: {value} must be at least {fewest}, which the metric {metric!r} needs; ask for more "
                "images or leave it out of evaluate.metrics"
            )


def check_local_features(run: Run) -> None:
    """Check the feature network as far as it needs no download."""
    check_prompts(run)
    for name, spec in _networks(run).items():
        if Path(resolve_source(spec.partition(":")[2] or spec)).expanduser().exists():
            _check_network(name, spec)
        else:
            logger.info("evaluate.networks.%s: %s will be fetched when the run starts", name, spec)
    if run.recipe.features != "inception":
        _check_feature_network(run)
    elif "features" in metric_needs(run.recipe.evaluate.metrics) and not inception_is_here():
        logger.info("evaluate.features: the weights of Inception will be downloaded when the run starts")


def check_features(run: Run) -> None:
    """Load all networks of the metrics, downloading them if need be, and show each an image."""
    check_prompts(run)
    for name, spec in _networks(run).items():
        _check_network(name, spec)
    _check_feature_network(run)


def check_prompts(run: Run) -> None:
    """Check that there are prompts where a metric compares images with them."""
    metrics = run.recipe.evaluate.metrics
    if "prompts" in metric_needs(metrics) and "prompt" not in call_parameters(run.pipeline_class):
        first = next(name for name in metrics if "prompts" in metric_needs([name]))
        raise PruningError(
            f"evaluate.metrics: {first!r} compares images with their prompts, and {run.pipeline_class.__name__} takes "
            "none; leave it out"
        )


def _networks(run: Run) -> dict[str, str]:
    """Return the networks that the metrics name for themselves, as the recipe gives them."""
    section = run.recipe.evaluate
    return {name: getattr(section.networks, name) for name in networks_of(section.metrics)}


def _check_network(name: str, spec: str) -> None:
    with named(f"evaluate.networks.{name}"):
        check_network(load_network(name, resolve_source(spec)))


def _check_feature_network(run: Run) -> None:
    """Load the feature network and show it one image of as many channels as the model's."""
    recipe = run.recipe
    if "features" not in metric_needs(recipe.evaluate.metrics):
        return
    if recipe.evaluate.features is None and recipe.data.source != DIGITS:
        logger.info(
            "evaluate.features: inception, for the data are %r and not the digits", recipe.data.source
        )
    channels = image_shape(run.meta)[0] if is_known(run.meta) else 3
    shown = f"{channels} channel{'s' * (channels != 1)}"
    with named("evaluate.features"):
        features = load_features(resolve_source(recipe.features))
        with named(f"{recipe.features!r} cannot be used for images of {shown}"):
            features.check_channels(channels)


def check_local_splits(run: Run) -> None:
    """Check that the splits exist, and that there are images where some are asked for, if the data are here."""
    data = run.recipe.data
    path = place_of(data.source)
    check_text(data.source)
    if data.source == DIGITS or path.exists() or path.is_absolute() or data.source.startswith("."):
        for split, of_images in zip((data.split, data.eval_split), image_splits(run, STAGES), strict=True):
            run.open_images(split) if of_images or run.has_images else run.prompts(split)


def check_model(run: Run) -> None:
    """Check that the model has groups of the asked kinds and that the target can be met."""
    kinds = run.recipe.prune.kinds
    missing = [kind for kind in kinds if all(g.kind != kind for g in run.groups)]
    if missing and kinds != Prune().kinds:  # of the default ones few models have all
        logger.info("prune.kinds: %s has no groups of kind %s", type(run.meta).__name__, ", ".join(missing))
    if not targets.is_measured(run.recipe.prune.target):
        with hushed():  # how near the uniform plan comes says nothing of the real one
            make_plan(run, None, smaller_forms.assumed(run, 0))
    with named("score.criterion"):
        check_kinds(run.recipe.score.criterion, run.groups)
        _check_attention(run)


def _check_attention(run: Run) -> None:
    """Check that the heads of a criterion that reads attention weights have any: linear attention forms none."""
    heads = [group for group in run.groups if group.kind == "attention_heads"]
    criterion = run.recipe.score.criterion
    if not any(
        isinstance(STATISTICS[name].sees, Attention) for name in needs_of(criterion, heads) - {ALWAYS}
    ):
        return
    if without := [group for group in heads if not is_attention(run.meta.get_submodule(group.module))]:
        raise PruningError(
            f"{criterion!r} reads attention weights, and the linear attention {without[0].module!r} forms none "
            f"({len(without)} of {len(heads)} groups of heads); choose another criterion, or leave attention_heads out "
            "of prune.kinds"
        )


def check_device(run: Run) -> None:
    """Check that the device is there."""
    usable_device(str(run.device), "device")


def usable_device(name: str, place: str) -> torch.device:
    """Return the device of that name, or of ``auto``; one that is not here is a PruningError, which names `place`."""
    try:
        device = device_named(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise PruningError(f"{place}: {name!r} cannot be used here ({reason}); choose auto or cpu") from error
    return device


def check_steps(run: Run) -> None:
    """Check that sampler and scheduler exist and can take the asked numbers of steps and buckets."""
    calibrate, evaluate = run.recipe.calibrate, run.recipe.evaluate
    if is_recorded(run):
        check_recording(run)
    elif steps := value_of(run.pipeline_class, call_of(run), STEPS):
        with named("calibrate.timestep_buckets"):
            check_buckets(calibrate.timestep_buckets, steps)
    with named("evaluate.sampler"):
        scheduler = scheduler_named(run.scheduler, evaluate.sampler)
    # A whole pipeline sets its own scheduler by more than the number of steps: that is seen in the rehearsal.
    ours = run.pipeline_class is PixelPipeline
    if ours or evaluate.sampler:
        _check_sampler(run, scheduler, evaluate)
    if ours and is_recorded(run):
        _check_sampler(run, run.scheduler, calibrate)
    with named("calibrate.timestep_weights"):
        timestep_weights(run)


def _check_sampler(run: Run, scheduler: Any, section: Calibrate | Evaluate) -> None:
    steps = steps_of(run, section)
    if steps is not None:
        with named(f"{type(section).__name__.lower()}.num_steps"):
            check_sampler(run.scheduler, scheduler, steps)


def check_provider(run: Run) -> None:
    """Check that the provider can give what the criteria need."""
    recipe = run.recipe
    if recipe.calibrate.provider != SAMPLING:
        return
    asked = [("score.criterion", recipe.score.criterion)]
    asked += [("calibrate.criteria", name) for name in recipe.calibrate.criteria]
    for key, criterion in asked:
        if name := targetless(run, criterion):
            raise PruningError(
                f"calibrate.provider: 'sampling' has no targets, which the statistic {name!r} of the criterion "
                f"{criterion!r} ({key}) needs; use calibrate.provider=noised or renoised, or another criterion"
            )


def check_candidates(run: Run) -> None:
    """Check that several plans can be carried out, each on a copy of the dense model."""
    asked = run.recipe.prune.candidates
    if asked > 1 and run.placement.streams:
        raise PruningError(
            f"prune.candidates: {asked} plans are each carried out on a copy of the dense model, and its weights stay "
            "in their files here, for they do not fit into memory; leave it out, or run where they fit "
            "(calibrate.memory_gb)"
        )
    if asked > 1 and len(found := candidates_of(run)) < asked:
        logger.info(
            "prune.candidates: %d are asked for, and this recipe and model allow %d that differ",
            asked,
            len(found),
        )


def check_data(run: Run, stages: Sequence[str]) -> None:
    """Check that the splits exist, and hold the images, labels and prompts that the stages need."""
    recipe = run.recipe
    if is_known(run.meta):
        _check_size(run)
    shown, judged = image_splits(run, stages)
    if shown:
        data = run.open_images(recipe.data.split)
        _check_split(run, data)
        if not is_recorded(run):
            data.check_enough(recipe.calibrate.num_samples)
    if training_samples(run):
        run.inputs(recipe.data.split, 1)
    if "evaluate" in stages and "prompt" in run.inputs(recipe.data.eval_split, 1)[0]:
        held, asked = len(run.prompts(recipe.data.eval_split)), recipe.evaluate.num_samples
        if held < min(FEW_PROMPTS, asked):
            logger.warning(
                "data.eval_split: %d samples are made of %d held-out prompts, in turn", asked, held
            )
    if judged:
        held_out = run.open_images(recipe.data.eval_split)
        _check_split(run, held_out)
        held_out.check_enough(recipe.evaluate.num_real or fewest_images(recipe.evaluate.metrics)[0])


def image_splits(run: Run, stages: Sequence[str]) -> tuple[bool, bool]:
    """Tell whether images are shown to the model, and whether it is judged by held-out ones."""
    recipe = run.recipe
    trains = "recover" in stages and recipe.recover.enabled and recovery_provider(run) == NOISED
    needs = {"real"} if is_recorded(run) else {"real", "noised"}
    judged = "evaluate" in stages and bool(needs & metric_needs(recipe.evaluate.metrics))
    return trains or not is_recorded(run), judged


def _check_size(run: Run) -> None:
    """Check that images are as large as the model takes them, where it works on pixels."""
    asked, pixels = run.recipe.data.resolution, takes_pixels(run.meta)
    _, height, width = sample_shape(run.meta)
    if pixels and height != width:
        raise PruningError(
            f"model.source: the model takes {height} x {width} images; only square ones are supported"
        )
    if pixels and asked not in (None, height):
        raise PruningError(
            f"data.resolution: {asked} is not the model's {height} x {width}, in which it samples and is measured; "
            "leave it out"
        )


def _check_split(run: Run, data: ImageData) -> None:
    _warn(check_classes(data, run.meta))
    data.check_readable(labels=num_classes(run.meta) is not None)


def check_weights(run: Run, stages: Sequence[str]) -> None:
    """Load the model and the pipeline around it, which no stage does before; later stages know them by their hash.

    Loading refuses a missing variant, cut or missing files, names and shapes that are not the config's, and NaN.
    """
    if STAGES[0] not in stages:
        return
    _, pipeline, asked = run.dense, run.pipeline, run.recipe.data.resolution
    if not is_known(run.meta):
        return
    scale, (_, height, width) = pixels_per_latent(pipeline), sample_shape(run.meta)
    if asked is not None and scale > 1 and (asked, asked) != (height * scale, width * scale):
        raise PruningError(
            f"data.resolution: {asked} pixels become {asked / scale:g} x {asked / scale:g} latents ({scale} pixels "
            f"each), but the model samples {height} x {width}; use {height * scale}, or leave it out"
        )


def check_measured_target(run: Run, stages: Sequence[str]) -> None:
    """Check that a target of time or memory can be met; the layers are timed for it, which the plan needs anyway."""
    if "plan" in stages and targets.is_measured(run.recipe.prune.target):
        with hushed():
            make_plan(run, None, smaller_forms.assumed(run, 0))


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        logger.warning("%s", text)
