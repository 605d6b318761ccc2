"""Rows that calibration sees follow the samples: in a batch in another order they come in that order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.calibration.routing import in_batch_order
from pruning.models.outputs import predict, tensors_in
from pruning.types import parameter_path
from tests.family.zoo_setup import error, model_of, widths
from tests.zoo import BATCH, ZOO, Draw

ALONG = {"encoder_hidden_states_llama3": 1}
"""Arguments whose samples lie along another dimension than the first."""

SEVERAL = {"hidden_states", "encoder_hidden_states", "encoder_hidden_states_image"}
"""Arguments that may have several rows for each sample: frames, pixels, images."""

SHARED = {"image_rotary_emb", "indices_latents_clean", "visual_rope_pos"}
"""Arguments with two entries of a tensor that are not the two samples."""

LISTS_OF_TWO = {"block_controlnet_hidden_states", "context_latents", "encodings_and_masks"}
"""Arguments whose list has two entries that are not the two samples."""

NO_BATCH = {
    "cosmos3": "it takes one sample a call",
    "cosmos3-sound-action": "it takes one sample a call",
    "minimax_h3": "its times are of kinds of tokens, which all samples share",
    "omnigen": "all samples get the positions of the first",
}
"""Entries whose call has no order of samples, and why."""


def turned(value: Any, name: str = "") -> Any:
    """Return an argument of a call with its two samples in the other order."""
    if isinstance(value, Tensor):
        along = ALONG.get(name, 0)
        size = value.shape[along] if value.ndim > along and name not in SHARED else 0
        of_samples = size == BATCH or (size and size % BATCH == 0 and name in SEVERAL)
        return (
            value.unflatten(along, (BATCH, -1)).flip(along).flatten(along, along + 1) if of_samples else value
        )
    if isinstance(value, dict):
        if set(value) == {*range(BATCH)}:
            return {sample: value[BATCH - 1 - sample] for sample in value}
        return {key: turned(item, key) for key, item in value.items()}
    if isinstance(value, list) and len(value) == BATCH and name not in LISTS_OF_TWO | SHARED:
        return value[::-1]
    if isinstance(value, (list, tuple)):
        return type(value)(turned(item, name) for item in value)
    return value


def seen(
    model: nn.Module, call: dict[str, Any], paths: Iterable[str]
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Return a model's output and what entered some of its modules, in the order of their calls."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}

    def look(path: str) -> Any:
        return lambda module, args, kwargs: found[path].append(
            next(tensors_in([args, kwargs])).detach().clone()
        )

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(look(path), with_kwargs=True) for path in found
    ]
    try:
        with torch.no_grad():
            return predict(model, call, BATCH), found
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", [name for name in ZOO if name not in NO_BATCH])
def test_rows_come_in_the_order_of_the_samples(name: str) -> None:
    model = model_of(name)
    paths = readers(model)
    output, rows = seen(model, ZOO[name].call(Draw()), paths)
    otherwise, rows_turned = seen(model, turned(ZOO[name].call(Draw())), paths)
    assert error(otherwise.flip(0), output) < 1e-4
    out_of_order = {path for path in paths if not all(map(follows, rows[path], rows_turned[path]))}
    assert {path for path in out_of_order if in_batch_order(model, path)} == set()
    declared = [path for path in paths if not in_batch_order(model, path)]
    assert out_of_order or not declared, "what is declared an exception is none"


def readers(model: nn.Module) -> list[str]:
    """Return the modules whose inputs calibration sees; matrices of stacked experts are no modules."""
    readers = [one for group in widths(model) for one in group.consumers]
    return sorted({one.consumer for one in readers if parameter_path(one.read_by.path) == one.read_by.path})


def follows(rows: Tensor, otherwise: Tensor) -> bool:
    """Tell whether rows of the same call with its samples in the other order are these rows in the other order."""
    if rows.shape != otherwise.shape or len(rows) % BATCH:
        return False
    return (
        error(otherwise.unflatten(0, (BATCH, -1)).flip(0).flatten(0, 1), rows) < 1e-3
    )  # the wrong rows: about 1
