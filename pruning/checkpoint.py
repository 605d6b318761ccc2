"""Pruned checkpoints in the ordinary diffusers layout, which plain ``from_pretrained`` loads.

A checkpoint is safetensors weights and a ``config.json`` with the stock class name and the base architecture's values,
plus one key that holds what the stock config cannot express, which `pruning.hook` makes diffusers understand.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from pruning.errors import PruningError
from pruning.files import write_text
from pruning.hook import hooked
from pruning.models import load_denoiser
from pruning.surgery.config import config_text


def save(
    model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "10GB"
) -> None:
    """Write `model`, a diffusers model, pruned or not, as a diffusers folder.

    Args:
        model: The model.
        folder: Written to; existing files of the same names are replaced. A file in its place is a PruningError.
        dtype: Cast a copy of the weights; None keeps them.
        max_shard_size: As in ``save_pretrained``.
    """
    if Path(folder).is_file():  # save_pretrained would log an error and return
        raise PruningError(f"cannot write a model to {folder}: it is a file; name a folder")
    if dtype is not None and any(p.dtype != dtype for p in model.parameters()):
        # ModelMixin.to warns about modules that stay in float32, which these have none of.
        model = nn.Module.to(copy.deepcopy(model), dtype)
    model.save_pretrained(  # type: ignore[operator]
        str(folder), safe_serialization=True, max_shard_size=max_shard_size
    )
    write_text(Path(folder) / "config.json", config_text(model))


def load(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> ModelMixin:
    """Load a denoiser folder, pruned or not, whether or not the hook is installed; in evaluation mode.

    Args:
        folder: Holds ``config.json`` and safetensors weights.
        dtype: Weights are cast to it; None takes float32, as diffusers does.
        device: Moved there after loading.

    Raises:
        PruningError: As `pruning.models.load_denoiser`, or for a bad ``_structured_pruning`` entry.
    """
    with hooked():
        return load_denoiser(folder, dtype=dtype or torch.float32, device=device)
