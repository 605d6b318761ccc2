"""Equal recovery of pruned models, and the Fréchet distance before and after."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eval.features import load_features
from eval.fid import frechet_distance
from pruning.models import resolve_source
from pruning.recovery import recover_images
from pruning.sampling import sample, to_uint8
from pruning.settings import Recover
from pruning.stages.sampling import labels_of
from study.bench import Bench, needed, sink_weights_of
from study.store import Store
from study.subjects import Cell

log = logging.getLogger("study")

STEPS = 120
SETTINGS = Recover(steps=STEPS, batch_size=64, learning_rate=2e-4, warmup_steps=20, ema_decay=0.999)
SAMPLES, SAMPLING_STEPS = 600, 20
HELD_OUT = 2000  # real images, or as many as there are


def measure_recovery(bench: Bench, store: Store, cell: Cell) -> None:
    """Train the pruned model of a cell back; keep excess error and Fréchet distance before and after."""
    variants = {cell.omega} - {"off"}
    needs, weights = needed(cell, bench.groups), sink_weights_of(cell)
    stats = bench.calibrate(cell.seed, needs, variants, weights, draw=cell.draw)
    model, plan = bench.prune(cell, stats)
    before = frechet(bench, model)
    recover_images(
        model,
        bench.dense,
        bench.shown("train", range(len(bench.run.images("train")))),
        SETTINGS,
        seed=cell.seed,
        device="cpu",
    )
    model.eval()
    damage = bench.damage(model)
    macs = plan.meta["macs"]
    result = {
        "excess_error": damage.excess_error,
        "macs": macs["plan"] / macs["dense"],
        "frechet": frechet(bench, model),
        "frechet_before": before,
        "frechet_dense": frechet_of_dense(bench, store),
    }
    store.add(replace(cell, recovered=True), result, damage.change.numpy(), damage.power.numpy())
    log.info("%s: %s", cell.key, result)


def frechet_of_dense(bench: Bench, store: Store) -> float:
    """Return the dense model's own distance, measured once, beside that of as many training images."""
    found = store.fact(bench.subject.name, "frechet-dense")
    if found is None:
        found = frechet(bench, bench.dense)
        store.keep_fact(bench.subject.name, "frechet-dense", found)
    if store.fact(bench.subject.name, "frechet-real") is None:
        store.keep_fact(bench.subject.name, "frechet-real", frechet_of_real(bench))
    return found


def frechet_of_real(bench: Bench) -> float:
    """Return the distance of training images to the held-out ones: what the metric's own sampling error comes to."""
    return frechet_of_images(bench, real_images(bench, "train", SAMPLES))


def frechet(bench: Bench, model: nn.Module) -> float:
    """Return the Fréchet distance of generated images to the held-out ones, on the subject's classifier features."""
    return frechet_of_images(bench, images_of(bench, model, SAMPLES, SAMPLING_STEPS))


def frechet_of_images(bench: Bench, images: Tensor) -> float:
    """Return the Fréchet distance of images (N, C, H, W) uint8 to the held-out ones."""
    extractor = load_features(_features(bench), torch.device("cpu"))
    real = real_images(bench, "test", HELD_OUT)
    return frechet_distance(_extract(extractor, real), _extract(extractor, images))


@torch.no_grad()
def images_of(bench: Bench, model: nn.Module, count: int, steps: int) -> Tensor:
    """Return samples of a model, from noise and labels that depend on their number alone."""
    ids = torch.arange(count)
    return sample(
        model,  # type: ignore[arg-type]
        bench.run.scheduler,
        sample_ids=ids,
        labels=labels_of(bench.run, ids),
        num_steps=steps,
        seed=0,
        batch_size=100,
        guidance_scale=1.0,
    )


def real_images(bench: Bench, split: str, most: int) -> Tensor:
    """Return images of a split, drawn once for all, uint8."""
    data = bench.run.images(split)
    rows = bench.drawn(split, most)
    return torch.cat([to_uint8(data.images(rows[k : k + 256])) for k in range(0, len(rows), 256)])


def _extract(extractor: Any, images: Tensor) -> Tensor:
    return extractor.extract(images, batch_size=250, place="study")


def _features(bench: Bench) -> str:
    source = bench.subject.features
    return resolve_source(source) if source.startswith("bundled:") else source
