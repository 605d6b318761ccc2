"""Cut a model down to a plan from folder to folder, for models that do not fit into memory.

The model is cut as `apply_plan` cuts it, but no byte is moved: for each weight it is noted where it comes from and what
is kept of it (`pruning.surgery.origins`). The slim files are then written piece by piece. What is half done lies beside
the target under a hidden name, and takes the target's name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn

from pruning.errors import PruningError, failing
from pruning.files import check_writable, expanded, remove, write_errors, write_text, written_whole
from pruning.groups import find_groups
from pruning.models.mapped import Located, locate, map_located
from pruning.models.stored import sampled
from pruning.store.hashes import hash_of
from pruning.store.locks import locked
from pruning.surgery.check import check_plan
from pruning.surgery.config import config_text
from pruning.surgery.cut import apply_with
from pruning.surgery.origins import Origins
from pruning.surgery.tensor_files import InPieces, file_bytes, write_in_pieces
from pruning.types import PrunableGroup, PruningPlan, slices_of

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are written."""

_WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_WORK = ".partial"
_ROOM = 1 << 20  # bytes, for what is written beside the weights


@dataclass(frozen=True)
class Written:
    """What `cut_on_disk` wrote.

    Attributes:
        folder: Where.
        dense_params: Parameters of the model that was cut.
        params: Parameters that are left.
        bytes: Of the weight files.
        files: How many these are.
    """

    folder: Path
    dense_params: int
    params: int
    bytes: int
    files: int


def cut_on_disk(
    source: str | Path,
    plan: PruningPlan,
    target: str | Path,
    *,
    changed: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "10GB",
    progress: Progress | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Written:
    """Write the slim model of a plan, never holding much more of it in memory than its largest weight.

    The folder is what `apply_plan` and `pruning.save` make of the model in the type of its files, or in `dtype` where
    that is wider, byte for byte. It appears under its name when it is whole. A call that was stopped goes on where it
    was when it is made again; what another call, of another plan or of other weights, left half done there is removed.

    Args:
        source: What is cut, pruned already or not: as for `map_denoiser`. It is not written to.
        plan: What to keep; an empty one keeps all.
        target: A folder that is not there, or is empty.
        changed: Weights by name in the dense model that take the place of the source's own; see `Origins`. Each is
            looked up when it is written, and before.
        dtype: As for `pruning.save`; None keeps the type.
        max_shard_size: As for `pruning.save`.
        progress: Called after each piece.
        subfolder: As for `map_denoiser`, and so the others.
        revision: Hub only.
        variant: Weight variant.

    Raises:
        PruningError: If the source cannot be loaded or holds NaN, the plan or `changed` does not fit it, the target is
            taken or lies in the source, or the disk has too little room; nothing that was there is changed then.
    """
    found = locate(source, subfolder=subfolder, revision=revision, variant=variant)
    place = _free_place(expanded(target), found.root)
    changed = changed or {}
    model: Any = map_located(found, runs_in=dtype)
    dense = _params(model)
    origins = Origins(model, changed, plan, dtype)
    groups = find_groups(model)
    plan = plan.completed(groups)
    check_plan(model, groups, plan)
    _check_biases(origins, groups, plan)
    origins.take_ranks()
    apply_with(origins, model, plan, groups)
    files, index = _files(model, origins, f"model source {found.source!r}", dtype, max_shard_size)
    texts = {"config.json": config_text(model)} | ({_INDEX: index} if index else {})
    work = place.with_name(f".{place.name}.{_fingerprint(found, plan, changed, files, texts)}{_WORK}")
    _write(work, place, files, texts, progress or (lambda done, total: None))
    weights = sum(file_bytes(tensors) for tensors in files.values())
    return Written(place, dense, _params(model), weights, len(files))


def _free_place(target: Path, source: Path) -> Path:
    """Return the absolute path of the target; one that is taken, or lies in the source, is a PruningError."""
    place = target.resolve()
    where = f"cannot write the slim model to {target}"
    if place.is_relative_to(source.resolve()):
        raise PruningError(f"{where}: it is the source, or lies in it; choose a folder elsewhere")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "is not empty" if place.is_dir() else "is a file"
        raise PruningError(f"{where}: it {what}; choose a folder that is not there yet")
    if place.is_mount():
        raise PruningError(f"{where}: a disk is mounted there; name a folder in it")
    return place


def _check_biases(origins: Origins, groups: Sequence[PrunableGroup], plan: PruningPlan) -> None:
    """A config records the biases of layers that are cut; a PruningError names a new one of another layer."""
    cut = {part.path.rpartition(".")[0] for group in plan.cuts(groups) for part in slices_of(group)}
    for path in origins.new_biases:
        if path not in cut and not plan.removes(path):
            raise PruningError(
                f"changed['{path}.bias']: the layer has no bias, and the plan does not cut it; only layers that it "
                "cuts may get one"
            )


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _files(
    model: nn.Module, origins: Origins, where: str, dtype: torch.dtype | None, max_shard_size: str | int
) -> tuple[dict[str, dict[str, InPieces]], str]:
    """Return the weight files with their tensors, and the text of their index, empty for a single file."""
    casts = dtype is not None and any(parameter.dtype != dtype for parameter in model.parameters())
    tensors: dict[str, InPieces] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        is_number = tensor.is_floating_point() or tensor.is_complex()
        kind = dtype if dtype is not None and casts and is_number else tensor.dtype
        pieces = partial(origins.of(tensor).pieces, where, kind)
        tensors[name] = InPieces(tuple(tensor.shape), kind, pieces)
    with failing("splitting the weights into files", {"max_shard_size": max_shard_size}):
        split = split_torch_state_dict_into_shards(
            {name: tensor.meta() for name, tensor in tensors.items()},
            filename_pattern=_WEIGHTS,
            max_shard_size=max_shard_size,
        )
    files = {
        file: {name: tensors[name] for name in names} for file, names in split.filename_to_tensors.items()
    }
    index = {"metadata": dict(split.metadata), "weight_map": split.tensor_to_filename}
    return files, json.dumps(index, indent=2, sort_keys=True) + "\n" if split.is_sharded else ""


def _fingerprint(
    found: Located,
    plan: PruningPlan,
    changed: Mapping[str, Tensor],
    files: Mapping[str, Mapping[str, InPieces]],
    texts: Mapping[str, str],
) -> str:
    """Return a hash of all that the files depend on; weights are known by their file's name, size and time."""
    digest = hashlib.sha256()
    for name in sorted(changed):
        digest.update(sampled(name, changed[name]))
    status = {file.name: file.stat() for file in found.files}
    return hash_of(
        {
            "source": {name: [state.st_size, state.st_mtime_ns] for name, state in status.items()},
            "plan": plan.to_dict(),
            "changed": digest.hexdigest(),
            "files": {
                file: {name: [tensor.shape, str(tensor.dtype)] for name, tensor in tensors.items()}
                for file, tensors in files.items()
            },
            "texts": dict(texts),
        }
    )[:16]


def _write(
    work: Path,
    place: Path,
    files: Mapping[str, Mapping[str, InPieces]],
    texts: Mapping[str, str],
    progress: Progress,
) -> None:
    """Write what is missing in the folder `work`, and let it take its place when it is whole."""
    what, kept = "the slim model", f"What is whole stays in {work}, and the same call goes on from there"
    with write_errors(what, place.parent, "Nothing has been changed"):
        place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name(f".{place.name}.lock"), str(place), "wait, or choose another folder"):
        _remove_left_over(work, place)
        sizes = {name: file_bytes(tensors) for name, tensors in files.items()}
        missing = [name for name in files if not _is_whole(work / name, sizes[name])]
        check_writable(what, place.parent, sum(sizes[name] for name in missing) + _ROOM)
        total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        done = total - sum(tensor.nbytes for name in missing for tensor in files[name].values())
        with write_errors(what, place.parent, kept):
            work.mkdir(exist_ok=True)
            for name in missing:
                with written_whole(work / name, flush=True) as temporary:
                    for count in write_in_pieces(temporary, files[name]):
                        done += count
                        progress(done, total)
            for name, text in texts.items():
                write_text(work / name, text)
            if place.is_dir():
                place.rmdir()
            os.rename(work, place)


def _remove_left_over(work: Path, place: Path) -> None:
    """Remove what other calls left half done for this place, and files that this one did not end."""
    ours = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{16}}{re.escape(_WORK)}")
    for path in place.parent.iterdir():
        if path != work and ours.fullmatch(path.name):
            logger.warning("%s: what another call left half done there is removed", place)
            remove(path)
    if work.is_dir():
        for path in work.iterdir():
            if path.name.endswith(".tmp"):
                remove(path)


def _is_whole(path: Path, size: int) -> bool:
    """Tell whether a file was written by an earlier call: under its name it is never half done."""
    return path.is_file() and path.stat().st_size == size
