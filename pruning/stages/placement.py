"""Where the weights of a run's models are: in memory, or in their files, of which a part at a time is read."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin

from pruning import models
from pruning.memory import held_bytes, usable_bytes
from pruning.models.mapped import MAPPABLE
from pruning.store import Key
from pruning.surgery import cut_on_disk
from pruning.types import PruningPlan

if TYPE_CHECKING:
    from pruning.stages.run import Run

logger = logging.getLogger(__name__)

MODEL = "model"
"""Folder of a model within a result."""
SUBJECTS = 3
"""Dense, pruned and recovered."""
STREAMED_FROM = 0.75
"""Share of the memory that the weights of all subjects may take."""


class Placement:
    """How much memory a run may take, and where the weights of its models are.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    @cached_property
    def memory(self) -> int:
        """Bytes that the run may hold on its device in all."""
        asked = self._run.recipe.calibrate.memory
        return usable_bytes(self._run.device) if asked is None else asked

    @property
    def working(self) -> dict[str, Any]:
        """Where scores and compensations are computed, and the memory that they may take beside what is held."""
        device = self._run.device
        return {"memory": max(0, self.memory - held_bytes(device)), "device": device}

    @cached_property
    def streams(self) -> bool:
        """Whether weights are in memory only while they are read: those of all subjects would not fit."""
        return SUBJECTS * self.weight_bytes > STREAMED_FROM * self.memory

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of the model that is cut, in the run's type."""
        return sum(parameter.numel() for parameter in self._run.meta.parameters()) * self._run.dtype.itemsize

    @cached_property
    def widens(self) -> bool:
        """Whether streamed weights are stored in a narrower type than the run's, and take that while they are read.

        Not where they are changed between calls, block by block: what they are changed to needs the run's type.
        """
        only_read = self._run.recipe.prune.selection == "one_shot"
        stored = models.stored_type(**self.source) if self.streams and only_read else None
        return stored in MAPPABLE and stored.itemsize < self._run.dtype.itemsize

    @property
    def dense_source(self) -> dict[str, Any]:
        """Where the dense model is, as loading takes it."""
        section = self._run.recipe.model
        return {key: getattr(section, key) for key in ("source", "subfolder", "revision", "variant")}

    @property
    def source(self) -> dict[str, Any]:
        """Where the model is that is cut: the dense one, or the slim one that a recipe starts from."""
        start = self._run.recipe.model.start
        return self.dense_source if start is None else {"source": start}

    @cached_property
    def stored(self) -> dict[str, Any]:
        """Where the dense weights lie in the type that the run works in, or can be widened to: for `map_denoiser`.

        Where the source holds another type, they are converted once, from file to file.
        """
        run, section = self._run, self._run.recipe.model
        if self.widens or models.stored_type(**self.source) == run.dtype:
            return self.source
        names = {key: value for key, value in self.source.items() if key != "source"}

        def convert(folder: Path) -> None:
            logger.info("%-9s the weights are converted to %s on the disk", "model", section.dtype)
            cut_on_disk(
                plan=PruningPlan(),
                target=folder / MODEL,
                dtype=run.dtype,
                progress=lambda done, total: run.bars("converting", done, total),
                **self.source,
            )

        key = Key("converted", {"dtype": section.dtype, **names}, run.workspace.hashes)
        converted = run.part(key, convert, resumable=True)
        run.lasting.add(converted.name)
        return {"source": converted.folder / MODEL}

    def streamed(self, source: str | Path, **where: Any) -> ModelMixin:
        """Return a model whose weights are in memory, in the run's type, only while they are read.

        Args:
            source: As for `map_denoiser`.
            where: And the rest.
        """
        model = models.map_denoiser(source, runs_in=self._run.dtype, **where)
        models.stream(model, device=self._run.device, dtype=self._run.dtype)
        return model
