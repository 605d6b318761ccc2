"""Denoisers whose weights stay in their files until they are used, for models that do not fit into memory."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from pruning.errors import PruningError
from pruning.files import read_json
from pruning.hook import hooked
from pruning.models.hub import MEND
from pruning.models.loading import find_config, unchecked_denoiser
from pruning.models.sources import local_folder, resolve_source
from pruning.models.widening import is_narrower

logger = logging.getLogger(__name__)

MAPPABLE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Types that a model can run in as they are stored."""

_STEM = "diffusion_pytorch_model"


def map_denoiser(
    source: str | Path,
    *,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
    runs_in: torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> ModelMixin:
    """Load a denoiser, pruned or not, without reading its weights: they are private maps of its files, on the CPU.

    It is what `load_denoiser` returns in the type that the files hold, or most of their bytes. A weight is read when it
    is first used, and may be written to: the files never change. What the files hold in another type than the model
    takes it in is converted in memory, of which a warning is given. Nothing is known yet of NaN: who goes through the
    weights looks for it (`pruning.models.streaming`, `pruning.surgery.on_disk`).

    Args:
        source: As for `load_denoiser`; of a hub id the weights are fetched into the hub's cache.
        subfolder: As for `load_denoiser`, and so the others.
        dtype: Type of the weights; None: as stored. Another than they are stored in cannot be mapped, and all are
            converted in memory. Instead, `pruning.models.stream` runs a model in a wider type than it is stored in, and
            `pruning.surgery.cut_on_disk` with an empty plan converts the files.
        runs_in: Type in which the model will be streamed or written: weights that are stored in a wider type than most
            keep theirs, or take this one if it is narrower. None: they take that of most.
        revision: Hub only.
        variant: Weight variant.

    Raises:
        PruningError: As `load_denoiser`, but for NaN; or if the files hold a type in which no model runs.
    """
    found = locate(source, subfolder=subfolder, revision=revision, variant=variant)
    return map_located(found, dtype, runs_in)


def stored_type(
    source: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> torch.dtype | None:
    """Return the type in which most bytes of a denoiser are stored; None where no weights are."""
    found = locate(source, subfolder=subfolder, revision=revision, variant=variant)
    return _main_type(_types_in(found.files))


@dataclass(frozen=True)
class Located:
    """A denoiser whose files are here.

    Attributes:
        source: What it was asked for as; see `resolve_source`.
        root: The folder that this means.
        folder: Where in it the denoiser is; None: in itself.
        config: Its config.
        variant: Of the weights.
    """

    source: str
    root: Path
    folder: str | None
    config: dict[str, Any]
    variant: str | None

    @property
    def files(self) -> list[Path]:
        """Its weight files in order, as diffusers takes them; none where there are none."""
        place = self.root / (self.folder or "")
        end = f".{self.variant}" if self.variant else ""
        index = read_json(place / f"{_STEM}.safetensors.index{end}.json", MEND) or {}
        sharded = index.get("weight_map")
        names = sorted({*sharded.values()}) if isinstance(sharded, dict) else [f"{_STEM}{end}.safetensors"]
        return [path for name in names if (path := place / str(name)).is_file()]


def locate(
    source: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Located:
    """Find the files of a denoiser, and fetch them if they are on the hub; all is as for `map_denoiser`."""
    resolved = resolve_source(source)
    folder, config = find_config(resolved, subfolder, revision)
    root = local_folder(resolved) or _fetched(resolved, folder, revision, variant)
    return Located(resolved, root, folder, config, variant)


def map_located(
    found: Located, dtype: torch.dtype | None = None, runs_in: torch.dtype | None = None
) -> ModelMixin:
    """Do what `map_denoiser` does with files that are here."""
    types = _types_in(found.files)
    stored = _main_type(types)
    if dtype is None and stored is not None and stored not in MAPPABLE:
        raise PruningError(
            f"model source {found.source!r}: its weights are stored as {_name(stored)}, in which no model runs; name "
            "the dtype to convert them to"
        )
    with hooked():
        model: Any = unchecked_denoiser(
            str(found.root), found.folder, found.config, dtype=dtype or stored, variant=found.variant
        )
    model.register_to_config(_name_or_path=found.source)
    if runs_in is not None:
        _take_wider(model, found.files, runs_in)
    held = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    other = [name for name, (kind, _) in types.items() if held.get(name, kind) != kind]
    if other:
        example = f"{other[0]} is {_name(types[other[0]][0])}, taken as {_name(held[other[0]])}"
        logger.warning(
            "%s: %d of %d weights are not stored in the type that the model takes them in (%s), and are converted in "
            "memory",
            *(found.source, len(other), len(held), example),
        )
    return model.eval()  # type: ignore[no-any-return]


def _take_wider(model: ModelMixin, files: list[Path], most: torch.dtype) -> None:
    """Take weights anew that files hold in a wider type than the model, in types no wider than `most`."""
    weights = model.state_dict(keep_vars=True)
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in weights.keys() & {*tensors.keys()}:
                stored, weight = tensors.get_tensor(name), weights[name]
                if is_narrower(weight, stored.dtype) and stored.is_floating_point():
                    weight.data = stored.to(min(stored.dtype, most, key=lambda kind: kind.itemsize))


def _types_in(files: list[Path]) -> dict[str, tuple[torch.dtype, int]]:
    """Return types and bytes of the floating tensors in weight files, without reading their values.

    What is wrong with a file, loading says.
    """
    found: dict[str, tuple[torch.dtype, int]] = {}
    for file in files:
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point():
                    found[name] = tensor.dtype, tensor.nbytes
    return found


def _main_type(types: dict[str, tuple[torch.dtype, int]]) -> torch.dtype | None:
    """Return the type that most bytes are of; None if there are none."""
    count: Counter[torch.dtype] = Counter()
    for dtype, nbytes in types.values():
        count[dtype] += nbytes
    return count.most_common(1)[0][0] if count else None


def _fetched(source: str, folder: str | None, revision: str | None, variant: str | None) -> Path:
    """Return the local copy of a hub repository, with what is needed of a denoiser."""
    end = f".{variant}" if variant else ""
    # Shards of a variant have had two forms of names.
    weights = [f"{name}.safetensors" for name in {f"{_STEM}{end}", f"{_STEM}{end}-*", f"{_STEM}-*{end}"}]
    names = ["config.json", f"{_STEM}.safetensors.index{end}.json", *weights]
    patterns = [f"{folder}/{name}" if folder else name for name in names]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # gated, no network, no room in the cache, …
        raise PruningError(
            f"model source {source!r}: its weights cannot be fetched: {type(error).__name__}: {error}"
        ) from error


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
