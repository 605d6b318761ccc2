"""Load denoisers, schedulers and pipelines from a folder or the hub."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from safetensors import SafetensorError

from pruning.errors import PruningError
from pruning.files import read_json
from pruning.models.hub import MEND, fetch_json, pipeline_index
from pruning.models.schedulers import build_scheduler
from pruning.models.sources import DENOISER_FOLDERS, resolve_source
from pruning.models.weights import weight_names, weights_fault

logger = logging.getLogger(__name__)


def load_denoiser(
    source: str | Path,
    *,
    subfolder: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> ModelMixin:
    """Load a denoiser with its weights, in evaluation mode.

    What is larger than the memory is loaded by `pruning.models.mapped.map_denoiser`.

    Args:
        source: ``bundled:models/…``, a pipeline folder (denoiser in ``unet/`` or ``transformer/``), a bare
            denoiser folder, or a hub id of either.
        subfolder: Where the denoiser is, if it is elsewhere in the source.
        dtype: Type of the weights; None takes float32, as diffusers does.
        device: Where to.
        revision: Hub only: branch, tag or commit.
        variant: Weight variant, e.g. ``"fp16"``.

    Raises:
        PruningError: If nothing is there, the class is not one of diffusers', weights are missing, or a weight is
            NaN or infinite (naming the parameter).
    """
    resolved = resolve_source(source)
    folder, config = find_config(resolved, subfolder, revision)
    model: Any = unchecked_denoiser(resolved, folder, config, dtype=dtype, revision=revision, variant=variant)
    check_finite(model, _place(resolved, folder))
    return model.to(device).eval()  # type: ignore[no-any-return]


@contextmanager
def _usual_dtype() -> Iterator[None]:
    """Put the default dtype back at the end: where a class refuses its config, diffusers leaves that of the weights."""
    usual = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def unchecked_denoiser(
    resolved: str,
    folder: str | None,
    config: dict[str, Any],
    *,
    dtype: torch.dtype | None,
    revision: str | None = None,
    variant: str | None = None,
) -> ModelMixin:
    """Load a denoiser as `load_denoiser` does, but for NaN and infinity; weights stored in `dtype` are not yet read.

    Args:
        resolved: Result of `resolve_source`.
        folder: Where in it the denoiser is, with its `config`: result of `find_config`.
        config: See `folder`.
        dtype: As for `load_denoiser`, and so the others.
        revision: Hub only.
        variant: Weight variant.
    """
    cls = _class_of(config, resolved, ModelMixin)
    where = _place(resolved, folder)
    try:
        with _usual_dtype():
            model, info = cls.from_pretrained(
                resolved,
                subfolder=folder,
                dtype=dtype,
                revision=revision,
                variant=variant,
                use_safetensors=True,
                output_loading_info=True,
            )
    except PruningError:
        raise
    except Exception as error:  # OSError, RuntimeError, SafetensorError, … all mean: this cannot be loaded
        why = weights_fault(weight_names(resolved, folder, revision), variant) or error
        raise PruningError(
            f"{where}: the weights of {cls.__name__} cannot be loaded: {why}{_damage(error)}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise PruningError(
            f"{where}: the weight files lack {missing[0]!r}{more}; the model would be partly random"
        )
    if unexpected := sorted(info["unexpected_keys"]):
        logger.warning(
            "%s: the weight files hold %d tensor(s) that %s of this config.json has no place for, such as %s; they are "
            "left out (does the config belong to these weights?)",
            *(where, len(unexpected), cls.__name__, ", ".join(map(repr, unexpected[:3]))),
        )
    return model


def _damage(error: BaseException | None) -> str:
    """Say what is wrong with a file of weights, where an error came of that; diffusers names the file alone."""
    while error is not None:
        if isinstance(error, SafetensorError):
            return f" It is damaged ({error}); get it again."
        error = error.__cause__ or error.__context__
    return ""


def load_meta_denoiser(
    source: str | Path, *, subfolder: str | None = None, revision: str | None = None
) -> ModelMixin:
    """Build a denoiser on the meta device: its shapes without its weights.

    The source may also be the path of a ``config.json`` alone; from the hub only the config is fetched. All else is as
    for `load_denoiser`.

    Raises:
        PruningError: If there is no such config, or diffusers cannot build it.
    """
    resolved = resolve_source(source)
    if Path(resolved).is_file():
        folder, config = None, read_json(Path(resolved), MEND) or {}
    else:
        folder, config = find_config(resolved, subfolder, revision)
    cls = _class_of(config, resolved, ModelMixin)
    try:
        with torch.device("meta"):
            model = cls.from_config(config)
    except PruningError:
        raise
    except Exception as error:  # a constructor may fail in any way on values that do not fit each other
        raise PruningError(
            f"{_place(resolved, folder)}: diffusers cannot build {cls.__name__}: {error}"
        ) from error
    if empty := next((name for name, parameter in model.named_parameters() if not parameter.numel()), None):
        raise PruningError(
            f"{_place(resolved, folder)}: {empty} of {cls.__name__} would be empty; a size in it is 0"
        )
    return model.to("meta").eval()


def find_scheduler(source: str | Path, *, revision: str | None = None) -> SchedulerMixin | None:
    """Load the scheduler of a pipeline folder or hub id, from ``scheduler/`` or beside the config; None without one.

    One whose class is not of diffusers, or whose config does not build a schedule, is a PruningError.
    """
    resolved = resolve_source(source)
    for folder in ("scheduler", None):
        config = fetch_json(resolved, folder, "scheduler_config.json", revision)
        if config is not None:
            where = f"model source {resolved!r}: {f'{folder}/' if folder else ''}scheduler_config.json"
            return build_scheduler(_class_of(config, resolved, SchedulerMixin), config, where)
    return None


def load_scheduler(source: str | Path, *, revision: str | None = None) -> SchedulerMixin:
    """Load the scheduler as `find_scheduler` does; one that is not there is a PruningError too."""
    found = find_scheduler(source, revision=revision)
    if found is None:
        raise PruningError(
            f"model source {resolve_source(source)!r} has no scheduler (scheduler/scheduler_config.json); how the "
            "model was noised is not known without it: add the scheduler's config, or give a folder or hub id of a "
            "whole pipeline"
        )
    return found


def pipeline_class(source: str | Path, *, revision: str | None = None) -> type[DiffusionPipeline] | None:
    """Return the class of the pipeline at a source, read from its index alone; None where the source is no pipeline.

    A class that is not of diffusers is a PruningError.
    """
    index = pipeline_index(source, revision)
    return None if index is None else _class_of(index, resolve_source(source), DiffusionPipeline)


def pipeline_parts(source: str | Path, *, revision: str | None = None) -> list[str]:
    """Return the names of the parts of the pipeline at a source, read from its index alone; none of another source."""
    index = pipeline_index(source, revision) or {}
    return [name for name, entry in index.items() if isinstance(entry, list)]


def denoiser_name(parts: Collection[str], subfolder: str | None = None) -> str | None:
    """Return which of a pipeline's parts is its denoiser: `subfolder`, else the usual one; None if none is."""
    return next((name for name in (subfolder, *DENOISER_FOLDERS) if name in parts), None)


def load_pipeline(
    source: str | Path,
    *,
    subfolder: str | None = None,
    denoiser: ModelMixin | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> DiffusionPipeline | None:
    """Load a whole pipeline, or return None where the source is no pipeline (it has no ``model_index.json``).

    A `denoiser` that is loaded already takes the place of the pipeline's own, that of `subfolder`, whose weights are
    then not read. All else is as for `load_denoiser`.

    Raises:
        PruningError: If a component is missing or cannot be loaded.
    """
    resolved = resolve_source(source)
    index = fetch_json(resolved, None, "model_index.json", revision)
    if index is None:
        return None
    _class_of(index, resolved, DiffusionPipeline)
    name = denoiser_name(index, subfolder)
    given = {name: denoiser} if denoiser is not None and name is not None else {}
    try:
        with _usual_dtype():
            pipeline = DiffusionPipeline.from_pretrained(
                resolved, dtype=dtype, revision=revision, variant=variant, use_safetensors=True, **given
            )
    except Exception as error:  # any component may fail in its own way
        parts = [part for part, entry in index.items() if isinstance(entry, list) and part not in given]
        faults = {part: weights_fault(weight_names(resolved, part, revision), variant) for part in parts}
        why = "; ".join(f"{part}: {fault}" for part, fault in faults.items() if fault) or error
        raise PruningError(f"pipeline {resolved!r} cannot be loaded: {why}") from error
    for part in pipeline.components.values():
        if (
            isinstance(part, torch.nn.Module) and part is not denoiser
        ):  # a denoiser may have its weights elsewhere
            part.to(device)
    return pipeline


def check_finite(model: torch.nn.Module, where: str) -> None:
    """Raise PruningError naming the first parameter or buffer that holds NaN or infinity."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_meta:
            check_values(tensor, where, name)


def check_values(tensor: torch.Tensor, where: str, name: str) -> None:
    """Raise PruningError if a weight, or a part of it, holds NaN or infinity."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    low, high = torch.aminmax(tensor.detach())  # NaN propagates; no copy of the weights is made
    if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
        raise PruningError(f"{where}: {name!r} holds NaN or infinity; the weights are broken, get them again")


def _place(source: str, folder: str | None) -> str:
    return f"model source {source!r}" + (f", folder {folder!r}" if folder else "")


def find_config(
    source: str, subfolder: str | None, revision: str | None
) -> tuple[str | None, dict[str, Any]]:
    """Return the denoiser's folder in a resolved source (None: the source itself) and its config.

    A source that holds no denoiser, or several, is a PruningError.
    """
    places: tuple[str | None, ...] = (subfolder,) if subfolder is not None else (*DENOISER_FOLDERS, None)
    found = [
        (place, config)
        for place in places
        if (config := fetch_json(source, place, "config.json", revision)) is not None
    ]
    inner = [place for place, _ in found if place is not None]
    if len(inner) > 1:
        raise PruningError(
            f"model source {source!r} has several denoisers ({', '.join(inner)}); name one with subfolder"
        )
    if not found:
        looked = ", ".join(f"{place}/config.json" if place else "config.json" for place in places)
        raise PruningError(
            f"model source {source!r} holds no denoiser: none of {looked} is there; give a diffusers pipeline folder, "
            "a denoiser folder, or a hub id"
        )
    return found[0]


def _class_of(config: dict[str, Any], source: str, kind: type) -> Any:
    """Return the diffusers class that a config names; a PruningError says if that is no `kind` of this diffusers."""
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise PruningError(f"model source {source!r}: the config names no class (_class_name is {name!r})")
    cls = getattr(diffusers, name, None) if name.isidentifier() else None
    if not isinstance(cls, type) or not issubclass(cls, kind):
        raise PruningError(
            f"model source {source!r}: the class {name!r} is not a {kind.__name__} of diffusers "
            f"{diffusers.__version__}; check _class_name, or update diffusers"
        )
    return cls
