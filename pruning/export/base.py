"""Exporting a model: the registry of back ends, and the folder that appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruning.errors import PruningError
from pruning.files import bring_back, check_writable, write_errors, written_whole
from pruning.models.loading import check_finite
from pruning.registry import Registry
from pruning.settings import Export

MANIFEST = "export.json"


@dataclass(frozen=True)
class ExportRequest:
    """What an exporter is asked to write; `export` documents the fields."""

    model: nn.Module
    name: str
    settings: Export
    card: Mapping[str, Any]
    scheduler: Any
    base_folder: Path | None
    verify: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type of the written weights."""
        return getattr(torch, self.settings.dtype)


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        folder: Where.
        files: Bytes of every file by its path in `folder`.
        bytes: Bytes of all files together.
        checks: What the exporter measured while verifying, e.g. ``output_error``.
    """

    folder: Path
    files: dict[str, int]
    bytes: int
    checks: dict[str, float] = field(default_factory=dict)


Write = Callable[[ExportRequest, Path], dict[str, float]]
"""Writes into the empty folder it is given, verifies what it wrote, and returns what it measured."""
Check = Callable[[ExportRequest], None]
"""Finds, before expensive work and without writing, what would stop `Write`: raises PruningError."""


@dataclass(frozen=True)
class Exporter:
    """A back end.

    Attributes:
        write: See `Write`.
        check: See `Check`.
    """

    write: Write
    check: Check


EXPORTERS: Registry[Exporter] = Registry("exporter")


def exporter(name: str, *, check: Check) -> Callable[[Write], Write]:
    """Register an exporter; see `Exporter`."""

    def decorate(write: Write) -> Write:
        EXPORTERS.register(name)(Exporter(write, check))
        return write

    return decorate


def check_export(
    model: nn.Module,
    settings: Export,
    *,
    card: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    base_pipeline_folder: str | Path | None = None,
) -> None:
    """Check what exports in all asked formats will need, before the model is there that they will write.

    Args:
        model: The dense model, in place of the slim one.
        settings: As for `export`.
        card: As for `export`, as far as the facts are known.
        scheduler: As for `export`.
        base_pipeline_folder: As for `export`.

    Raises:
        PruningError: For the first thing that would stop an export.
    """
    settings.check("export")
    for name in settings.formats:
        request = _request(model, Path(name), settings, card, scheduler, base_pipeline_folder, verify=False)
        EXPORTERS[name].check(request)


def export(
    model: nn.Module,
    folder: str | Path,
    settings: Export,
    *,
    exporter: str = "diffusers",
    card: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    base_pipeline_folder: str | Path | None = None,
    verify: bool = False,
) -> ExportResult:
    """Write `model` for use elsewhere; the folder is replaced as a whole, after what was written was verified.

    Args:
        model: A diffusers denoiser, pruned or not; not changed.
        folder: Written to. It must not exist, be empty, or hold an earlier export, which stays whole until the
            new one is.
        settings: Type of the written weights and size of the files; `formats` is not read.
        exporter: Name of the back end.
        card: Facts for the model card; see `pruning.export.card`.
        scheduler: Written beside the denoiser; None takes that of `base_pipeline_folder`, if it has one.
        base_pipeline_folder: Folder of the base model. Where it is a whole pipeline, its other parts (VAE, text
            encoders, …) are copied, so that the result is a whole pipeline too.
        verify: Also load what was written and compare weights and outputs.

    Raises:
        PruningError: For an unknown exporter or dtype, weights that are not finite or do not fit the dtype, a
            folder that cannot be written, is full or holds other files, or a result that does not verify.
    """
    if exporter not in EXPORTERS:
        raise PruningError(f"unknown exporter {exporter!r}; valid: {', '.join(EXPORTERS)}")
    settings.check("export")
    place = Path(folder).expanduser().absolute()
    request = _request(model, place, settings, card, scheduler, base_pipeline_folder, verify)
    _check_weights(model, request.dtype)
    bring_back(place)
    _check_replaceable(place)
    check_writable("export", place.parent, _weight_bytes(model, request.dtype))
    kept = "An earlier export there is whole" if place.exists() else "Nothing is left there"
    with write_errors("export", place, kept), written_whole(place, flush=True) as temporary:
        temporary.mkdir()
        checks = EXPORTERS[exporter].write(request, temporary)
        files = _seal(temporary, exporter, settings.dtype)
    return ExportResult(place, files, sum(files.values()), checks)


def _request(
    model: nn.Module,
    place: Path,
    settings: Export,
    card: Mapping[str, Any] | None,
    scheduler: Any,
    base_folder: str | Path | None,
    verify: bool,
) -> ExportRequest:
    base = None if base_folder is None else Path(base_folder).expanduser()
    if base is not None and not base.is_dir():
        raise PruningError(f"export: base_pipeline_folder {str(base)!r} is no folder")
    return ExportRequest(model, place.name, settings, dict(card or {}), scheduler, base, verify)


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


def _check_replaceable(place: Path) -> None:
    """Raise PruningError if replacing `place` would lose files that no export wrote."""
    if not place.exists():
        return
    if not place.is_dir():
        raise PruningError(f"export: {place} is a file; choose another folder")
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    try:
        known = set(json.loads((place / MANIFEST).read_text(encoding="utf-8"))["files"]) | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    if strangers := sorted(found - known):
        raise PruningError(
            f"export: {place} holds {strangers[0]!r}, which no export wrote, and would be replaced; "
            "choose another folder or move that file away"
        )


def _seal(folder: Path, exporter: str, dtype: str) -> dict[str, int]:
    """Write the manifest; return the sizes of the files."""
    files = {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()
    }
    manifest = folder / MANIFEST
    content = {"format": 1, "exporter": exporter, "dtype": dtype, "files": files}
    manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return files


def _weight_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    return sum(p.numel() for p in model.parameters()) * torch.finfo(dtype).bits // 8
