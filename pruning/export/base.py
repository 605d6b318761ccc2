"""Exporting a model: the registry of back ends, and the folder that appears whole and verified or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruning.data import num_train_timesteps
from pruning.errors import PruningError
from pruning.export.card import Facts
from pruning.files import expanded, write_errors, written_whole
from pruning.models.loading import check_finite
from pruning.registry import Registry
from pruning.settings import Export


@dataclass(frozen=True)
class ExportRequest:
    """What an exporter is asked to write.

    Attributes:
        model: A diffusers denoiser, pruned or not; not changed.
        scheduler: Written beside the denoiser.
        settings: Type of the written weights and size of the files; `formats` is read by `check_export` alone.
        card: Facts for the model card.
        base_folder: Folder of the base model. Where it is a whole pipeline, its other parts (VAE, text encoders, …) are
            copied, so that the result is a whole pipeline too.
    """

    model: nn.Module
    scheduler: Any
    settings: Export = field(default_factory=Export)
    card: Facts = field(default_factory=Facts)
    base_folder: Path | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the written weights."""
        return getattr(torch, self.settings.dtype)

    def check(self) -> None:
        """Raise PruningError for settings out of range, no scheduler, or a base folder that is none."""
        self.settings.check("export")
        num_train_timesteps(self.scheduler)
        if self.base_folder is not None and not self.base_folder.is_dir():
            raise PruningError(f"export: base_folder {str(self.base_folder)!r} is no folder")


@dataclass(frozen=True)
class Exporter:
    """A back end.

    Attributes:
        write: Writes into the empty folder it is given, verifies what it wrote by loading it, and returns what it
            measured, e.g. ``output_error``.
        check: Finds, before expensive work and without writing, what would stop `write`: raises PruningError.
    """

    write: Callable[[ExportRequest, Path], dict[str, float]]
    check: Callable[[ExportRequest], None]


EXPORTERS: Registry[Exporter] = Registry("exporter")


def exporter(name: str, *, check: Callable[[ExportRequest], None]) -> Callable[[Any], Any]:
    """Register a function as `Exporter.write`."""

    def decorate(write: Callable[[ExportRequest, Path], dict[str, float]]) -> Any:
        EXPORTERS.register(name)(Exporter(write, check))
        return write

    return decorate


def check_export(request: ExportRequest) -> None:
    """Check what exports in all asked formats will need, with the dense model in place of the slim one.

    Raises:
        PruningError: For the first thing that would stop an export.
    """
    request.check()
    for name in request.settings.formats:
        EXPORTERS[name].check(request)


def export(request: ExportRequest, folder: str | Path, *, exporter: str = "diffusers") -> dict[str, float]:
    """Write a model for use elsewhere; the folder appears when what was written has been verified.

    Args:
        request: What to write.
        folder: Where; it must not exist, or be empty.
        exporter: Name of the back end.

    Returns:
        What was measured while verifying.

    Raises:
        PruningError: For an unknown exporter or dtype, weights that are not finite or do not fit the dtype, a folder
            that cannot be written, is full or holds files, or a result that does not verify.
    """
    if exporter not in EXPORTERS:
        raise PruningError(f"unknown exporter {exporter!r}; valid: {', '.join(EXPORTERS)}")
    request.check()
    _check_weights(request.model, request.dtype)
    place = expanded(folder).absolute()
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise PruningError(
            f"export: {place} exists and is no empty folder; choose another, or delete it first"
        )
    with write_errors("export", place, "Nothing is left there"):
        place.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(place, flush=True) as temporary:
            temporary.mkdir()
            return EXPORTERS[exporter].write(request, temporary)


def _check_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Raise PruningError if a weight is not finite, or would not be in `dtype`."""
    check_finite(model, "export")
    largest = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        peak = parameter.detach().abs().max().item() if parameter.numel() else 0.0
        if peak > largest:
            raise PruningError(
                f"export: {name!r} reaches {peak:.4g}, more than {dtype} holds ({largest:.4g}); use bfloat16 or float32"
            )
