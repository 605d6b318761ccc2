"""Stage ``evaluate``: dense, pruned and recovered, measured side by side."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors.torch import save_file

from eval.cost import saved_bytes
from eval.features import load_features
from eval.media import medium_of, pictures
from eval.networks import load_network
from eval.observation import Rows
from eval.run import measure_all, networks_of
from eval.types import Context, LatencyOptions, Subject
from pruning.calibration.driver import prediction
from pruning.data import NoisedBatches
from pruning.errors import PruningError
from pruning.files import write_json
from pruning.models import first_answer, resolve_source
from pruning.sampling import PixelPipeline, to_uint8
from pruning.stages.observing import (
    LOOKED_AT,
    NETWORKS,
    Seen,
    features_identity,
    network_identity,
    observe,
)
from pruning.stages.run import METRICS, Run
from pruning.stages.sampling import labels_of, sampler
from pruning.stages.showing import example, is_recorded, shown
from pruning.stages.stage import Stage

SAMPLES, SAMPLE = "samples.safetensors", "sample.json"
READ_AT_ONCE = 256
"""Real images that are read at once."""
SHOWN_SAMPLES = 32
"""Samples a subject of which pictures are kept for the report."""

FIGURES = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "fd_dinov2": "Fréchet distance on DINOv2 features",
    "cmmd": "discrepancy of CLIP embeddings",
    "clip_score": "CLIP score",
    "precision": "precision",
    "recall": "recall",
    "lpips": "LPIPS to the dense model, same noise",
    "excess_error": "excess error against the dense model",
    "pair_pixels": "distance of pixels to the dense model, same noise, over that of unrelated samples",
    "pair_features": "distance of features to the dense model, same noise, over that of unrelated samples",
    "ssim": "SSIM to the dense model, same noise",
    "mse": "mean squared error to the dense model, same noise",
    "spectral_error": "spectral error to the dense model, same noise",
    "macs": "multiply-accumulates of one call",
    "params": "parameters",
    "file_bytes": "bytes of the weights",
    "speedup_call": "speed-up of one call",
    "speedup_sampling": "speed-up of sampling",
}
"""What a short table and the model card tell of each subject, and under which names."""


def circumstances(run: Run) -> dict[str, Any]:
    """Return the networks that are meant, with null resolved, and the device, on which latency depends."""
    section = run.recipe.evaluate
    networks = {
        f"{NETWORKS}{name}": network_identity(run, getattr(section.networks, name))
        for name in networks_of(section.metrics)
    }
    return {"evaluate.features": features_identity(run), **networks, "device": run.device_name}


@partial(
    Stage,
    "evaluate",
    after=("prune", "recover"),
    reads=(*LOOKED_AT, "recover.enabled"),
    extra=circumstances,
    on_all_ranks=True,
)
def evaluate(run: Run, folder: Path) -> dict[str, Any]:
    """Measure every metric of the recipe on the dense, the pruned and the recovered model.

    What a subject shows by itself is looked up in the store; only latency is measured in turns, anew for every run.
    The processes of a launch make samples and features together; the first one computes the metrics.
    """
    stages = {"pruned": "prune"} | ({"recovered": "recover"} if run.recipe.recover.enabled else {})
    found = {"dense": run.reference} | {name: run.load_pruned(stage) for name, stage in stages.items()}
    hashes = {name: run.result(stage).output_hash for name, stage in stages.items()}
    hashes["dense"] = run.workspace.hashes["model"] if run.ranks.is_first else ""
    subjects = {name: _subject(run, model) for name, model in found.items()}
    context = _context(run, subjects)
    try:
        seen = observe(run, context, hashes)
        if not run.ranks.is_first:
            return {}
        metrics = measure_all(context, run.recipe.evaluate.metrics, seen=seen)
    except ValueError as error:
        raise PruningError(str(error)) from error
    _keep_samples(run, subjects, seen, folder)
    write_json(folder / METRICS, metrics)
    return {name: {key: values[key] for key in FIGURES if key in values} for name, values in metrics.items()}


def _subject(run: Run, model: ModelMixin) -> Subject:
    """Return a model under test. Its file size is that of its weights as they would be exported."""
    generate = sampler(run, model, run.recipe.evaluate)
    size = saved_bytes(model, getattr(torch, run.recipe.export.dtype))
    return Subject(
        predict=lambda call: first_answer(model, call),
        answer=lambda batch: prediction(model, batch),
        sample=generate,
        model=model,
        file_bytes=size,
    )


def _context(run: Run, subjects: dict[str, Subject]) -> Context:
    section, split = run.recipe.evaluate, run.recipe.data.eval_split
    noised = cache(partial(_noised, run, split, section.denoising_samples))
    latency = section.latency
    # A pipeline of diffusers has a state, so it looks at one batch after the other.
    side_by_side = run.device.type == "cpu" and run.pipeline_class is PixelPipeline
    return Context(
        subjects=subjects,
        real=lambda: _real(run, split, section.num_real),
        noised=noised,
        call=lambda batch: example(run, batch),
        features=cache(partial(load_features, resolve_source(run.recipe.features), run.device)),
        networks={name: cache(partial(_network, run, name)) for name in networks_of(section.metrics)},
        prompts=lambda ids: [run.inputs(split, 1, skip=int(i))[0].get("prompt", "") for i in ids],
        num_samples=section.num_samples,
        batch_size=section.batch_size,
        workers=torch.get_num_threads() if side_by_side else 1,
        latency=LatencyOptions(
            batch_size=latency.batch_size,
            rounds=latency.runs,
            sampling_rounds=latency.sampling_runs,
            num_threads=latency.threads,
            modes=latency.modes,
            batch_sizes=latency.batch_sizes,
        ),
        seed=run.recipe.seed,
        progress=run.bars,
    )


def _network(run: Run, name: str) -> Any:
    """Return a network that a metric names for itself."""
    return load_network(name, resolve_source(getattr(run.recipe.evaluate.networks, name)), run.device)


def _noised(run: Run, split: str, most: int) -> NoisedBatches:
    """Return what is predicted of a split: at most so many images, noised, or recorded samples."""
    count = most if is_recorded(run) else min(most, len(run.images(split)))
    return shown(run, range(count), held_out=True, batch_size=run.recipe.evaluate.batch_size)


def _real(run: Run, split: str, count: int | None) -> Rows:
    """Return the images of a split that the distances compare with, uint8 (N, C, H, W); None for `count` is all."""
    data = run.images(split)
    parts = torch.tensor(run.choose(split, len(data) if count is None else count)).split(READ_AT_ONCE)
    return Rows(
        [*map(len, parts)], lambda numbers: (to_uint8(data.images(parts[number])) for number in numbers)
    )


def _keep_samples(run: Run, subjects: dict[str, Subject], seen: Seen, folder: Path) -> None:
    """Keep pictures of the first samples of every subject for the report, with their classes and what they are."""
    ids = torch.arange(min(SHOWN_SAMPLES, run.recipe.evaluate.num_samples))
    tensors, facts = {}, {}
    for name, subject in subjects.items():
        assert subject.sample is not None
        known = seen[name].get("samples")
        found = known.tensors["samples"][: len(ids)] if known else subject.sample(ids)
        tensors[name] = pictures(found).contiguous()
        facts = {"medium": medium_of(found), "shape": list(found.shape[1:])}
    write_json(folder / SAMPLE, facts)
    labels = labels_of(run, ids)
    if labels is not None:
        tensors["labels"] = labels
    save_file(tensors, str(folder / SAMPLES))
