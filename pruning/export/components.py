"""The parts of a pipeline beside its denoiser: found in the base model's folder, copied without pickles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from pruning.errors import PruningError
from pruning.files import read_json
from pruning.models.sources import DENOISER_FOLDERS
from pruning.models.weights import CONVERT, PICKLES, only_pickled

INDEX = "model_index.json"
SCHEDULER = "scheduler"
_UNUSED = (*PICKLES, ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".py")


def read_index(base: Path | None) -> dict[str, Any] | None:
    """Return the ``model_index.json`` of a pipeline folder, or None where `base` is no pipeline.

    Raises:
        PruningError: If it is not a JSON object, or names a part that cannot be a folder's name.
    """
    index = None if base is None else read_json(base / INDEX, "get the base model again")
    for name in index or ():
        if not name.isidentifier():
            raise PruningError(
                f"export: the {INDEX} of {base} names a part {name!r}, which is no folder's name"
            )
    return index


def denoiser_folder(model: nn.Module, base: Path | None) -> str:
    """Return the folder that the denoiser takes: as in the base model, else ``unet`` or ``transformer`` by class.

    Raises:
        PruningError: If the base pipeline has no part of the model's class.
    """
    name = type(model).__name__
    if (index := read_index(base)) is not None:
        found = [part for part, entry in index.items() if isinstance(entry, list) and entry[-1] == name]
        if not found:
            raise PruningError(
                f"export: the base pipeline {base} has no part of class {name}; give the model's own"
            )
    else:
        found = [
            part for part in DENOISER_FOLDERS if base is not None and (base / part / "config.json").is_file()
        ]
    usual = "unet" if "unet" in name.lower() else "transformer"
    return next((part for part in found if part in DENOISER_FOLDERS), found[0] if found else usual)


def copy_components(base: Path | None, folder: Path, denoiser: str, scheduler: str) -> bool:
    """Copy the parts of the pipeline at `base` but denoiser and scheduler, and write its index.

    Pickles, code and other frameworks' weights stay behind. Of weights in several variants one is taken: the plain
    one, else the first, under the plain name.

    Args:
        base: Folder of the base model.
        folder: Written to.
        denoiser: The denoiser's name in the index.
        scheduler: Class of the scheduler that was written.

    Returns:
        Whether `base` is a pipeline.

    Raises:
        PruningError: If a part is missing or has only pickled weights.
    """
    for part in check_components(base, denoiser):
        _copy_part(part, folder / part.name)
    index = read_index(base)
    if index is None:
        return False
    if SCHEDULER in index:
        index[SCHEDULER] = ["diffusers", scheduler]
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return True


def check_components(base: Path | None, denoiser: str) -> list[Path]:
    """Return the folders of all parts of the pipeline at `base` but denoiser and scheduler, none of them a pickle.

    Raises:
        PruningError: If a part is missing or has only pickled weights.
    """
    found = []
    for part, entry in (read_index(base) or {}).items():
        if base is None or not isinstance(entry, list) or entry[-1] is None or part in (denoiser, SCHEDULER):
            continue
        source = base / part
        if not source.is_dir():
            raise PruningError(
                f"export: the base pipeline lacks its part {part!r} ({source} is no folder); get the base model whole"
            )
        if pickle := only_pickled(path.name for path in source.rglob("*") if path.is_file()):
            raise PruningError(f"export: {source} has its weights only as a pickle ({pickle}); {CONVERT}")
        found.append(source)
    return found


def _copy_part(source: Path, target: Path) -> None:
    for path in (path for path in sorted(source.rglob("*")) if path.is_file()):
        name = _target_name(path)
        if path.suffix not in _UNUSED and name is not None:
            place = target / path.relative_to(source).with_name(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _target_name(path: Path) -> str | None:
    """Return the name of the copy: a lone variant of weights loses its infix, others (None) stay behind."""
    parts = path.name.split(".")
    if len(parts) != 3 or parts[-1] != "safetensors":
        return path.name
    plain = path.with_name(f"{parts[0]}.safetensors")
    variants = sorted(path.parent.glob(f"{parts[0]}.*.safetensors"))
    return plain.name if not plain.exists() and path == variants[0] else None
