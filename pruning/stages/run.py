"""A run: one recipe in one run directory, and everything that a stage may ask for, loaded when first asked."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from pruning import checkpoint, models
from pruning.allocation import Cost, CostModel
from pruning.calibration import load_stats
from pruning.calibration.tensors import read_tensors
from pruning.data import (
    ImageData,
    Prompts,
    find_null_class,
    open_images,
    open_prompts,
    sample_generator,
)
from pruning.data.labels import golden_stride
from pruning.data.prompts import is_text
from pruning.errors import PruningError, named
from pruning.files import read_json
from pruning.groups import find_groups
from pruning.models.widening import borrowed
from pruning.recipe import Recipe
from pruning.sampling import PixelPipeline
from pruning.settings import NO_DATA
from pruning.stages.placement import MODEL, Placement
from pruning.stages.progress import Bars
from pruning.stages.ranks import Ranks
from pruning.stages.workspace import Workspace
from pruning.store import MANIFEST, Key, Result
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, Scores

T = TypeVar("T")

logger = logging.getLogger(__name__)

STATS, SCORES = "stats", "scores.safetensors"
PLAN, METRICS = "plan.json", "metrics.json"
SCORES_CONTENT = "importance scores"
PLAIN = ("DDPMPipeline", "DDIMPipeline")
"""Pipelines whose loop fits one kind of scheduler. `PixelPipeline` does what they do with any."""
CHOICE = 32
"""Stream of `sample_generator` that draws which images are looked at."""


class Run:
    """One recipe at work in its run directory.

    Args:
        recipe: What to do.
        progress: Draw progress bars (where standard error is a terminal).

    Attributes:
        offline: Look at no data, which may lie on a hub.
        placement: How much memory it may take, and where the weights are.
        anew: Stages that are to be done even if there is a result.
        uses: Names of the shared results that the stage at work has asked for.
        lasting: Those that all stages use from then on.
        redoing: The stage at work is done anew, and so are the shared results that it asks for.
        costs: What was measured or traced for the target, by key; see `pruning.stages.targets`.
        seen: What has been read of the stages' results, ``stage/file``; who wants to know where something comes from
            empties it before.
        batch_faults: By section, why its samples are made one a call; None where they are not.
    """

    def __init__(self, recipe: Recipe, *, progress: bool = True) -> None:
        recipe.check("recipe")
        self.recipe = recipe
        self.workspace = Workspace(recipe)
        self.folder = self.workspace.folder
        self.offline = False
        self.anew: set[str] = set()
        self.uses: set[str] = set()
        self.lasting: set[str] = set()
        self.redoing = False
        self.seen: set[str] = set()
        self._results: dict[str, Result] = {}
        self.ranks = Ranks(self.folder.path, cpu=device_named(recipe.device).type == "cpu")
        self.bars = Bars(progress and self.ranks.is_first)
        self.placement = Placement(self)
        self.costs: dict[str, Cost] = {}
        self.batch_faults: dict[str, str | None] = {}
        self._images: dict[str, ImageData] = {}
        self._prompts: dict[str, Prompts] = {}
        self._loaded: dict[tuple[str, str], tuple[Result, Any]] = {}

    def result(self, stage: str) -> Result:
        """Return the result of a stage that this run uses; if it has not been run, that is a PruningError."""
        self.seen.add(f"{stage}/{MANIFEST}")
        return self._result(stage)

    def file(self, stage: str, name: str) -> Path:
        """Return where a stage wrote a file, or would have."""
        path = self._result(stage).folder / name
        if path.exists():
            self.seen.add(f"{stage}/{name}")
        return path

    def _result(self, stage: str) -> Result:
        return self._results.get(stage) or self.folder.whole(stage)

    def use(self, stage: str, result: Result) -> None:
        """Take `result` as that of the stage."""
        self._results[stage] = result

    def part(self, key: Key, work: Callable[[Path], None], *, resumable: bool = False) -> Result:
        """Return a result that several stages or runs share, made by `work` if it is not in the store.

        With `resumable`, work goes on from what an interrupted attempt left in its folder, unless it is to be redone.
        """
        store = self.workspace.store

        def timed(folder: Path) -> dict[str, Any]:
            began = time.perf_counter()
            work(folder)
            return {"seconds": round(time.perf_counter() - began, 3)}

        anew = self.redoing and key.name not in self.uses
        found = None if anew else store.find(key)
        result = found or store.make(key, timed, resumable=resumable and not anew, anew=anew)
        self.uses.add(result.name)
        return result

    # Where things run.

    @property
    def device(self) -> torch.device:
        """The device of the recipe; ``auto`` is CUDA, else MPS, else the CPU."""
        return self.ranks.device or device_named(self.recipe.device)

    @property
    def device_name(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        cores, threads = os.cpu_count() or 1, torch.get_num_threads()
        return (
            f"{self.device} ({platform.machine()}, {cores} core{'s' * (cores > 1)}, "
            f"{threads} thread{'s' * (threads > 1)})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return getattr(torch, self.recipe.model.dtype)

    # The model.

    @cached_property
    def meta(self) -> ModelMixin:
        """The model that is cut, on the meta device; what stands for "no class" is settled."""
        section = self.recipe.model
        where = {key: value for key, value in self.placement.source.items() if key != "variant"}
        with named("model.start", PruningError) if section.start is not None else nullcontext():
            model = models.load_meta_denoiser(**where)
        if not self.offline and (models.has_open_null_class(model) or section.null_class != "auto"):
            data = self.open_images(self.recipe.data.split, image_shape(model)) if self.has_images else None
            label, why = find_null_class(model, data, section.null_class)
            if why:
                logger.info("model.null_class: %s", why)
            models.set_null_class(model, label)
        return model

    @cached_property
    def all_groups(self) -> list[PrunableGroup]:
        """All groups of the model, of whatever kind."""
        return list(find_groups(self.meta))

    @property
    def groups(self) -> list[PrunableGroup]:
        """The groups that the recipe allows to cut; a model that has none of them is a PruningError."""
        asked = self.recipe.prune.kinds
        found = [group for group in self.all_groups if group.kind in asked]
        if not found:
            have = ", ".join(sorted({group.kind for group in self.all_groups})) or "none at all"
            raise PruningError(
                f"prune.kinds: {type(self.meta).__name__} {self.recipe.model.source!r} has no groups of kind "
                f"{', '.join(asked)}; it has {have}"
            )
        return found

    @cached_property
    def cost(self) -> CostModel:
        """What plans cost, for one sample."""
        return CostModel.trace(self.meta, models.example_call(self.meta, 1), self.all_groups)

    def share_of_dense(self, measure: str) -> float:
        """Return which share of the dense model's ``macs`` or ``params`` the model has that is cut; 1 if it is that."""
        if self.recipe.model.start is None:
            return 1.0
        return getattr(self.cost, measure)() / getattr(self._reference_cost, measure)()

    @cached_property
    def _reference_cost(self) -> CostModel:
        whole = self.reference_meta
        return CostModel.trace(whole, models.example_call(whole, 1), find_groups(whole))

    @property
    def _held(self) -> dict[str, Any]:
        """Type and place of weights."""
        return {"dtype": self.dtype, "device": self.device}

    def load_dense(self) -> ModelMixin:
        """Load the model that is cut anew, for who changes it."""
        if self.placement.streams:
            return self._settled(self.placement.streamed(**self.placement.stored))
        return self._settled(models.load_denoiser(**self.placement.source, **self._held))

    def _settled(self, model: ModelMixin) -> ModelMixin:
        models.set_null_class(model, models.null_class(self.meta))
        return model

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """The dense model's parameters by path, each to be held no longer than needed."""
        return (
            borrowed(self.dense, self.dtype)
            if self.placement.streams
            else dict(self.dense.named_parameters())
        )

    @cached_property
    def dense(self) -> ModelMixin:
        """The model that is cut, whole; not to be changed."""
        return self.load_dense()

    @cached_property
    def reference_meta(self) -> ModelMixin:
        """The model of `reference` on the meta device."""
        if self.recipe.model.start is None:
            return self.meta
        where = {key: value for key, value in self.placement.dense_source.items() if key != "variant"}
        return models.load_meta_denoiser(**where)

    @cached_property
    def reference(self) -> ModelMixin:
        """What recovery learns from and evaluation compares with: the dense model, also where a slim one is cut."""
        if self.recipe.model.start is None:
            return self.dense
        return self._settled(models.load_denoiser(**self.placement.dense_source, **self._held))

    def load_pruned(self, stage: str = "prune", dtype: torch.dtype | None = None) -> ModelMixin:
        """Load the model that `stage` (``prune`` or ``recover``) wrote, in evaluation mode.

        A model whose weights stay in their files has them in the type in which they were written.
        """
        folder = self.result(stage).folder / MODEL
        if self.placement.streams:
            return self.placement.streamed(folder)
        return checkpoint.load(folder, dtype=dtype or self.dtype, device=self.device)

    @property
    def is_config(self) -> bool:
        """Whether the source of the model is a config alone, of which nothing is known but the denoiser."""
        return Path(models.resolve_source(self.recipe.model.source)).is_file()

    @cached_property
    def pipeline_class(self) -> type:
        """Class of the pipeline that the models sample in, known without weights; ours around a bare denoiser."""
        return sampling_class(self.recipe.model.source, self.recipe.model.revision)

    @cached_property
    def pipeline(self) -> DiffusionPipeline | None:
        """The pipeline around the dense model, or None for a bare denoiser."""
        return models.load_pipeline(**self.placement.dense_source, denoiser=self.dense, **self._held)

    def release_pipeline(self) -> None:
        """Let go of what is around the dense model, text encoders and autoencoder, until it is asked for again."""
        vars(self).pop("pipeline", None)

    @property
    def autoencoder(self) -> Any | None:
        """The pipeline's autoencoder, or None where the model works on pixels."""
        return models.autoencoder_of(self.pipeline)

    @cached_property
    def scheduler(self) -> Any:
        """The model's own scheduler."""
        return models.load_scheduler(self.recipe.model.source, revision=self.recipe.model.revision)

    # The data.

    @property
    def has_images(self) -> bool:
        """Whether the data hold images, not prompts alone or nothing."""
        return self.recipe.data.source != NO_DATA and not is_text(self.recipe.data.source)

    def inputs(self, split: str, count: int, *, skip: int = 0, spread: bool = False) -> list[dict[str, Any]]:
        """Return what samples bring to a call of the pipeline: those with the indices from `skip` on.

        A text pipeline has the prompts of the split in turn, a class-conditional one all classes in turn; with `spread`
        the classes of the first few samples are far apart.
        """
        indices, taken = range(skip, skip + count), models.call_parameters(self.pipeline_class)
        if "prompt" in taken:
            prompts = self.prompts(split)
            return [{"prompt": prompts.of_sample(i)} for i in indices]
        classes = models.num_classes(self.meta) if "class_labels" in taken else None
        if classes is None:
            return [{} for _ in indices]
        stride = golden_stride(classes) if spread else 1
        return [{"class_labels": [i * stride % classes]} for i in indices]

    def prompts(self, split: str) -> Prompts:
        """Return the prompts of a split."""
        if split not in self._prompts:
            section = self.recipe.data
            self._prompts[split] = open_prompts(section.source, split, section.caption_column)
        return self._prompts[split]

    def images(self, split: str) -> ImageData:
        """Return the images of a split, as large and coloured as the model takes them."""
        if split not in self._images:
            known = models.is_known(self.meta)
            shape = models.pixel_shape(self.meta, self.pipeline) if known else None
            self._images[split] = self.open_images(split, shape)
        return self._images[split]

    def open_images(self, split: str, shape: tuple[int, int] | None = None) -> ImageData:
        """Open a split of the data with the given channels and resolution, else those of `image_shape`."""
        section = self.recipe.data
        channels, side = shape or (image_shape(self.meta) if models.is_known(self.meta) else (3, None))
        resolution = section.resolution or side or self.recipe.pipeline.get("height")
        if not isinstance(resolution, int) and self.has_images:
            raise PruningError(
                f"data.resolution: how large the images of {type(self.meta).__name__} are is not known here; give it"
            )
        return open_images(
            section.source,
            split=split,
            channels=channels,
            resolution=resolution or 1,
            image_column=section.image_column,
            label_column=section.label_column,
            caption_column=section.caption_column,
        )

    def choose(self, split: str, count: int, *, skip: int = 0) -> list[int]:
        """Return the rows of a split that are looked at: `count` drawn by the seed, sorted; others after `skip`."""
        data = self.images(split)
        data.check_enough(skip + count)
        order = torch.randperm(len(data), generator=sample_generator(self.recipe.seed, 0, CHOICE))
        return sorted(order[skip : skip + count].tolist())

    @property
    def guidable(self) -> bool:
        """Whether the model can be asked without a class or prompt, as guidance does."""
        return (
            "prompt" in models.call_parameters(self.pipeline_class)
            or models.null_class(self.meta) is not None
        )

    # What stages wrote.

    @property
    def stats(self) -> CalibrationStats:
        """What the stage ``calibrate`` gathered."""
        return self._read("calibrate", STATS, load_stats)

    @property
    def scores(self) -> Scores:
        """What the stage ``score`` found."""
        return self._read("score", SCORES, _read_scores)

    def scores_in(self, folder: Path) -> Scores:
        """Return the scores that were written to a folder."""
        return _read_scores(folder / SCORES)

    @property
    def plan(self) -> PruningPlan:
        """What the stage ``plan`` decided."""
        return self._read("plan", PLAN, PruningPlan.load)

    @property
    def cut_plan(self) -> PruningPlan:
        """The plan that the stage ``prune`` cut by: that of ``plan``, or one of its sizes chosen anew."""
        return self._read("prune", PLAN, PruningPlan.load)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """What the stage ``evaluate`` measured, by subject."""
        return self._read("evaluate", METRICS, read_json) or {}

    def _read(self, stage: str, name: str, load: Callable[[Path], T]) -> T:
        """Return what `load` makes of an artefact, read once for each result of the stage."""
        result, path = self._result(stage), self.file(stage, name)
        if self._loaded.get((stage, name), (None,))[0] != result:
            self._loaded[stage, name] = result, load(path)
        return self._loaded[stage, name][1]


def _read_scores(path: Path) -> Scores:
    return Scores(*read_tensors(path, SCORES_CONTENT))


def image_shape(model: ModelMixin) -> tuple[int, int]:
    """Return channels and height of the model's images; of a latent model, colour and the height of its latents."""
    channels, height, _ = models.sample_shape(model)
    return channels if models.takes_pixels(model) else 3, height


def sampling_class(source: str, revision: str | None = None) -> type:
    """Return the class of the pipeline that a source's model samples in; ours around a bare denoiser of pixels."""
    found = models.pipeline_class(source, revision=revision)
    return PixelPipeline if found is None or found.__name__ in PLAIN else found


def device_named(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA, else MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
