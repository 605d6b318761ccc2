"""What denoisers put out, in one form: a row for each sample, whatever tuples, lists and packings the class returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tree of tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def joined(value: Any, rows: int) -> Tensor:
    """Return all floating point tensors of an output, or of a target of the same form, as one, (rows, D).

    Tensors that begin with the batch are joined row by row. Of the others, lists with a tensor for each sample and
    packed sequences, the entries are dealt out evenly in their order, padded with zeros if need be; where they are not
    of equal sizes a row is then no sample, and the sum over rows is all that means something.
    """
    apart, packed = [], []
    for tensor in tensors_in(value):
        if tensor.is_floating_point() and tensor.numel():
            batched = tensor.ndim > 1 and tensor.shape[0] == rows
            (apart if batched else packed).append(tensor.flatten(1) if batched else tensor.flatten())
    if packed:
        flat = torch.cat(packed)
        apart.append(F.pad(flat, (0, -len(flat) % rows)).view(rows, -1))
    return torch.cat(apart, dim=1)


def with_tuple(model: nn.Module, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with which a model returns a tuple, if its class can be asked for one."""
    asked = {"return_dict": False} if "return_dict" in inspect.signature(model.forward).parameters else {}
    return {**call, **asked}


def first_answer(model: nn.Module, call: Mapping[str, Any]) -> Tensor:
    """Return the first tensor that a denoiser of any class puts out for a call."""
    return next(tensors_in(model(**with_tuple(model, call))))


def predict(model: nn.Module, call: Mapping[str, Any], rows: int) -> Tensor:
    """Return all that a denoiser of any class puts out for a call with a batch of `rows`, (rows, D); see `joined`."""
    return joined(model(**with_tuple(model, call)), rows)
