"""The slim diffusers folder: denoiser, scheduler and model card, or a whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning import checkpoint
from pruning.errors import PruningError
from pruning.export.base import ExportRequest, exporter
from pruning.export.card import model_card
from pruning.export.components import SCHEDULER, check_components, copy_components, denoiser_folder
from pruning.models.native import example_call
from pruning.models.outputs import predict

TRIED = 2
"""Samples of the example call."""

OUTPUT_ERROR = {torch.float32: 1e-5, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest relative error of the outputs, ||written - model|| / ||model||, by the type of the written weights."""


def check_folder(request: ExportRequest) -> None:
    """Find what would stop `write_folder`: a base pipeline without a part, pickled weights, a card that cannot be."""
    part = denoiser_folder(request.model, request.base_folder)
    check_components(request.base_folder, part)
    model_card(request.model, request.dtype, request.card, part=part, whole_pipeline=False)


@exporter("diffusers", check=check_folder)
def write_folder(request: ExportRequest, folder: Path) -> dict[str, float]:
    """Write the model as plain ``from_pretrained`` loads it (after ``import pruning`` if it is pruned).

    ``<unet or transformer>/`` as in the base model, ``scheduler/``, ``README.md``; with a base pipeline also its
    other parts and ``model_index.json``.

    Raises:
        PruningError: If a part is missing or the result does not verify.
    """
    model, base = request.model, request.base_folder
    part = denoiser_folder(model, base)
    shard = request.settings.max_shard_size
    checkpoint.save(model, folder / part, dtype=request.dtype, max_shard_size=shard)
    request.scheduler.save_pretrained(folder / SCHEDULER)
    whole = copy_components(base, folder, part, type(request.scheduler).__name__)
    card = model_card(model, request.dtype, request.card, part=part, whole_pipeline=whole)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return {"output_error": _verify(model, request.dtype, folder / part)}


@torch.no_grad()
def _verify(model: nn.Module, dtype: torch.dtype, folder: Path) -> float:
    """Load what was written; compare weights exactly and outputs on an example call; return their relative error."""
    try:
        loaded: Any = checkpoint.load(folder, dtype=dtype)
    except PruningError as error:
        raise PruningError(f"export does not verify: {error}") from error
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        stored = tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()
        if name not in state or not torch.equal(stored, state[name].to(stored.dtype)):
            raise PruningError(f"export does not verify: {name!r} reads back with other values")
    first = next(model.parameters())
    call, training = example_call(model, TRIED), model.training
    wanted = _output(model.eval(), call)
    model.train(training)
    error = (_output(loaded.to(first.device, first.dtype), call) - wanted).norm() / wanted.norm().clamp_min(
        1e-12
    )
    limit = max(OUTPUT_ERROR[dtype], OUTPUT_ERROR.get(first.dtype, 0.0))
    if not error.item() <= limit:  # NaN fails too
        raise PruningError(
            f"export does not verify: the outputs differ by {error.item():.3g} (relative) from the model's; "
            f"{dtype} may differ by {limit:g}. Use a wider dtype"
        )
    return error.item()


def _output(model: nn.Module, call: dict[str, Any]) -> Tensor:
    return predict(model, call, TRIED).float()
