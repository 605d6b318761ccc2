"""One subject on the bench: calibrate it, prune it in a copy, measure what changed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pruning.allocation import allocate
from pruning.calibration import calibrate
from pruning.data import NoisedBatch, NoisedBatches
from pruning.importance import needs_of, score
from pruning.models import denoise, example_call
from pruning.recording.images import ImageCalls, noised_images
from pruning.selection import block_by_block
from pruning.settings import Calibrate, Prune, SinkWeights, Target
from pruning.stages.imaging import image_calls
from pruning.stages.run import Run
from pruning.surgery import apply_plan, compensate, compensation_needs
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, Scores, config_hash
from study.subjects import Cell, Subject

log = logging.getLogger("study")

BUCKETS = 8
HELD_OUT = 256
KINDS = ("attention_heads", "ffn_channels", "resnet_channels")


@dataclass(frozen=True)
class Damage:
    """How far a pruned model's prediction is from the dense one, image by image.

    Attributes:
        change: Sum of squared differences over timesteps and pixels, ``(images,)``.
        power: Sum of the dense model's squared predictions, ``(images,)``.
    """

    change: Tensor
    power: Tensor

    @property
    def excess_error(self) -> float:
        """``sum change / sum power``: D of docs/studies/sink-awareness.md."""
        return float(self.change.sum() / self.power.sum())


class Bench:
    """A dense model with its data, its groups and its reference predictions.

    Args:
        subject: What is studied.
        prepare: Puts on a loaded model what its folder does not say, such as an attention processor.
    """

    def __init__(self, subject: Subject, prepare: Callable[[nn.Module], object] = lambda model: None) -> None:
        self.subject = subject
        self.run = Run(subject.recipe, progress=False)
        prepare(self.run.dense)

    @property
    def dense(self) -> Any:
        """The dense model; not to be changed."""
        return self.run.dense

    @cached_property
    def groups(self) -> list[PrunableGroup]:
        """The groups that are cut: no blocks."""
        return [group for group in self.run.all_groups if group.kind in KINDS]

    def rows(self, number: int) -> list[int]:
        """Return the images of a calibration set; sets are disjoint."""
        order = torch.randperm(
            len(self.run.images("train")), generator=torch.Generator().manual_seed(2026)
        ).tolist()
        size = self.subject.calibration
        found = order[number * size : (number + 1) * size]
        if len(found) < size:
            raise SystemExit(f"{self.subject.name}: no images left for calibration set {number}")
        return found

    def drawn(self, split: str, most: int) -> list[int]:
        """Return at most so many rows of a split, drawn once for all: files may be sorted by class."""
        count = len(self.run.images(split))
        return torch.randperm(count, generator=torch.Generator().manual_seed(2027)).tolist()[:most]

    def batches(self, split: str, rows: Sequence[int], seed: int, batch_size: int = 128) -> NoisedBatches:
        """Return images of a split, noised to every timestep bucket."""
        return noised_images(
            self.shown(split, rows), batch_size=batch_size, timestep_buckets=BUCKETS, seed=seed
        )

    def shown(self, split: str, rows: Sequence[int]) -> ImageCalls:
        """Return images of a split as the model's pipeline would show them to it."""
        return image_calls(self.run, split, rows)

    def calibrate(
        self,
        number: int,
        needs: Iterable[str],
        variants: Iterable[str] = (),
        sink_weights: SinkWeights | None = None,
        *,
        draw: int = 0,
        model: nn.Module | None = None,
        groups: Sequence[PrunableGroup] | None = None,
    ) -> CalibrationStats:
        """Measure the dense model (or `model`) on a calibration set; `draw` is the seed of permuted weights."""
        settings = Calibrate(timestep_buckets=BUCKETS, sink_weights=sink_weights or SinkWeights())
        return calibrate(
            self.dense if model is None else model,
            self.groups if groups is None else groups,
            self.batches("train", self.rows(number), seed=1000 + number, batch_size=32),
            needs=sorted(needs),
            variants=sorted(variants),
            settings=settings,
            seed=number,
            permutation_seed=draw,
        )

    @cached_property
    def held_out(self) -> list[tuple[NoisedBatch, Tensor]]:
        """Held-out batches and the dense model's predictions."""
        rows = self.drawn("test", HELD_OUT)
        with torch.no_grad():
            return [(b, denoise(self.dense, b.call)) for b in self.batches("test", rows, seed=7)]

    @torch.no_grad()
    def damage(self, model: nn.Module, batches: int | None = None) -> Damage:
        """Compare `model` with the dense one on held-out images (on the first `batches` alone)."""
        model.eval()
        change: dict[int, float] = {}
        power: dict[int, float] = {}
        for batch, reference in self.held_out[:batches]:
            moved = (denoise(model, batch.call) - reference).double().square().flatten(1).sum(1)
            size = reference.double().square().flatten(1).sum(1)
            for i, a, b in zip(batch.sample_ids.tolist(), moved.tolist(), size.tolist(), strict=True):
                change[i] = change.get(i, 0.0) + a
                power[i] = power.get(i, 0.0) + b
        order = sorted(change)
        return Damage(torch.tensor([change[i] for i in order]), torch.tensor([power[i] for i in order]))

    def plan(self, cell: Cell, scores: Scores) -> PruningPlan:
        """Return the plan of a cell."""
        return allocate(
            self.groups,
            scores,
            self.run.cost,
            Prune(target=Target(macs=cell.macs_ratio), scope=cell.scope),
            start=PruningPlan(base_hash=config_hash(self.dense.config)),
        )

    def prune(self, cell: Cell, stats: CalibrationStats) -> tuple[nn.Module, PruningPlan]:
        """Return a pruned copy of the dense model, and its plan."""
        options = {"criterion": cell.criterion, "weighting": cell.omega, "seed": cell.seed}
        plan = self.plan(cell, score(self.dense, self.groups, stats, **options))
        model = copy.deepcopy(self.dense)
        if cell.selection == "block_by_block":
            needs = needed(cell, self.groups)
            variants = {cell.omega} - {"off"}
            plan, _ = block_by_block(
                model,
                self.run.all_groups,
                plan,
                run=lambda: denoise(model, example_call(model, 1)),
                measure=lambda groups: self.calibrate(
                    cell.seed,
                    needs,
                    variants,
                    sink_weights_of(cell),
                    draw=cell.draw,
                    model=model,
                    groups=groups,
                ),
                judge=lambda groups, found: score(model, groups, found, **options),
                compensation=cell.compensation,
            )
        else:
            compensate(model, self.run.all_groups, plan, stats, method=cell.compensation)
        return apply_plan(model, plan), plan


def sink_weights_of(cell: Cell) -> SinkWeights:
    """Return the settings of a cell's row weights."""
    return SinkWeights(unstable=cell.unstable, stable=cell.stable)


def needed(cell: Cell, groups: Sequence[PrunableGroup]) -> set[str]:
    """Return the names of the statistics that a cell reads."""
    return needs_of(cell.criterion, groups) | compensation_needs(cell.compensation)
