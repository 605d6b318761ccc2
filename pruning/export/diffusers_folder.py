"""The slim diffusers folder: denoiser, scheduler and model card, or a whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pruning import checkpoint
from pruning.errors import PruningError
from pruning.export.base import ExportRequest, exporter
from pruning.export.card import model_card
from pruning.export.components import (
    check_components,
    copy_components,
    denoiser_folder,
    read_index,
    write_scheduler,
)
from pruning.models.families import example_call
from pruning.models.loading import load_meta_denoiser
from pruning.surgery import reshape
from pruning.types import PRUNING_KEY

OUTPUT_ERROR = {torch.float32: 1e-5, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest relative error of the outputs, ||written - model|| / ||model||, by the type of the written weights."""


def check_folder(request: ExportRequest) -> None:
    """Find what would stop `write_folder`: a base pipeline without a part, pickled weights, facts of no card."""
    part = denoiser_folder(request.model, request.base_folder)
    whole = request.base_folder is not None and read_index(request.base_folder) is not None
    if whole and request.base_folder is not None:
        check_components(request.base_folder, part)
    model_card(request, part, type(request.scheduler).__name__, whole_pipeline=whole)


@exporter("diffusers", check=check_folder)
def write_folder(request: ExportRequest, folder: Path) -> dict[str, float]:
    """Write the model as plain ``from_pretrained`` loads it (after ``import pruning`` if it is pruned).

    ``<unet or transformer>/`` as in the base model, ``scheduler/``, ``README.md``; with a base pipeline also its
    other parts and ``model_index.json``.

    Returns:
        ``output_error`` if the request asks to verify.

    Raises:
        PruningError: If a part is missing or the result does not verify.
    """
    part = denoiser_folder(request.model, request.base_folder)
    checkpoint.save(
        request.model,
        folder / part,
        dtype=request.dtype,
        max_shard_size=request.settings.max_shard_size,
    )
    scheduler = write_scheduler(request.scheduler, request.base_folder, folder)
    whole = read_index(request.base_folder) is not None
    if whole and request.base_folder is not None:
        copy_components(request.base_folder, folder, part, scheduler)
    card = model_card(request, part, scheduler, whole_pipeline=whole)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _check_shapes(request, folder, part)
    return {"output_error": _compare(request, folder / part)} if request.verify else {}


def _check_shapes(request: ExportRequest, folder: Path, part: str) -> None:
    """Rebuild the model on the meta device and read the files' headers: names, shapes and types must agree."""
    rebuilt: Any = load_meta_denoiser(folder, subfolder=part)
    if (entry := rebuilt.config.get(PRUNING_KEY)) is not None:
        reshape(rebuilt, entry)  # in case the hook is disabled; else it changes nothing
    wanted = {name: tuple(tensor.shape) for name, tensor in request.model.state_dict().items()}
    found = {
        "config.json": {name: tuple(tensor.shape) for name, tensor in rebuilt.state_dict().items()},
        "the weights": _stored_shapes(folder / part, request.dtype),
    }
    for place, shapes in found.items():
        if differing := sorted(set(wanted.items()) ^ set(shapes.items())):
            name = differing[0][0]
            raise PruningError(
                f"export does not verify: {name!r} is {wanted.get(name, 'absent')} in the model and "
                f"{shapes.get(name, 'absent')} by {place} of {part}/; nothing was replaced"
            )


def _stored_shapes(folder: Path, dtype: torch.dtype) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                piece = file.get_slice(name)
                shapes[name] = tuple(piece.get_shape())
                if piece.get_dtype() in kinds.values() and piece.get_dtype() != kinds[dtype]:
                    raise PruningError(
                        f"export does not verify: {name!r} was written as {piece.get_dtype()}, not {dtype}"
                    )
    return shapes


@torch.no_grad()
def _compare(request: ExportRequest, folder: Path) -> float:
    """Load what was written; compare weights exactly and outputs on an example call; return their relative error."""
    model, device = request.model, next(request.model.parameters()).device
    loaded: Any = checkpoint.load(folder, dtype=request.dtype)
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        stored = tensor.to("cpu", request.dtype) if tensor.is_floating_point() else tensor.cpu()
        if not torch.equal(stored, state[name].to(stored.dtype)):
            raise PruningError(
                f"export does not verify: {name!r} reads back with other values; nothing was replaced"
            )
    loaded = loaded.to(device).float().eval()
    call = example_call(model, 2)
    wanted = _output(model, call)
    error = (
        _output(loaded, {k: _float(v) for k, v in call.items()}) - wanted
    ).norm() / wanted.norm().clamp_min(1e-12)
    limit = max(OUTPUT_ERROR[request.dtype], OUTPUT_ERROR.get(next(model.parameters()).dtype, 0.0))
    if not error.item() <= limit:  # NaN fails too
        raise PruningError(
            f"export does not verify: the outputs differ by {error.item():.3g} (relative) from the model's; "
            f"{request.dtype} may differ by {limit:g}. Use a wider dtype; nothing was replaced"
        )
    return error.item()


def _output(model: nn.Module, call: dict[str, Any]) -> Tensor:
    training = model.training
    model.eval()
    try:
        return model(**call, return_dict=False)[0].float()
    finally:
        model.train(training)


def _float(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _float(entry) for key, entry in value.items()}
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
