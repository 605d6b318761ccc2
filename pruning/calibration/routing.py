"""Rows that do not follow the order of the batch; above all those of experts: whose they are, how much they count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pruning.calibration.hooks import main_tensor
from pruning.errors import PruningError
from pruning.groups.experts import Mixture, mixtures
from pruning.types import inside, parameter_path

TOKENS_FIRST = {"ErnieImageTransformer2DModel": "its hidden states are (tokens, batch, channels)"}
"""Denoisers in which the leading entries of an input are no samples, and why."""

ROUTED = re.compile(r"(^|\.)experts\.\d+(\.|$)")
"""Paths of single experts, which get the tokens of all samples that a router sends them; see `Gates`."""

DIFFERENTIABLE_IN_TRAINING = ("MOEFeedForwardSwiGLU",)
"""Mixtures of experts that run without gradients in evaluation mode, and do the same with them in training mode."""


def in_batch_order(model: nn.Module, path: str) -> bool:
    """Tell whether the leading entries of what enters or leaves a module follow the samples of the batch."""
    return type(model).__name__ not in TOKENS_FIRST and ROUTED.search(path) is None


@contextmanager
def experts_with_gradients(model: nn.Module) -> Iterator[None]:
    """Let gradients go through experts; what the model computes stays the same but for rounding."""
    found = [m for m in model.modules() if type(m).__name__ in DIFFERENTIABLE_IN_TRAINING and not m.training]
    try:
        for module in found:
            module.training = True  # of the module alone: its parts stay in evaluation mode
        yield
    finally:
        for module in found:
            module.training = False


@dataclass(frozen=True)
class Sent:
    """The rows that one expert sees in a call of its layer.

    Attributes:
        gate: By how much the layer multiplies what the expert puts out for each, (rows,) float32.
        entry: To which leading entry of the layer's output each belongs, (rows,) int64, CPU.
        entries: Leading entries of the layer's output.
    """

    gate: Tensor
    entry: Tensor
    entries: int


class Gates:
    """What layers of experts make of the rows that they send to each, in the call that runs.

    A layer is linear in its experts' outputs once it has sent them their tokens. So before it runs it is run with
    experts that put out zeros, and differentiated by those: the gradient of the sum of its outputs by a row is the
    gate of that row, and the gradients of sums over some of the samples say whose row it is. It costs the router and
    what is not routed, nothing of the experts, and supposes nothing of how a model sends and multiplies. Such a run
    must send the tokens in the same order as the real one; see `experts_with_gradients`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._mixtures = mixtures(model)
        self._sent: dict[tuple[str, int], Sent] = {}

    def layers(self, paths: Iterable[str]) -> list[Mixture]:
        """Return the layers in whose experts some of these paths lie."""
        found = {place[0] for path in paths if (place := self._place(path)) is not None}
        return [mixture for mixture in self._mixtures if mixture.path in found]

    def of(self, path: str, rows: int) -> Sent | None:
        """Return what is known of the rows that an expert sees; None for what is in no expert.

        Args:
            path: Of a module in an expert, or of a matrix of a stack.
            rows: How many there are.

        Raises:
            PruningError: If it is in an expert whose layer has not run, or sent it another number of rows.
        """
        place = self._place(path)
        if place is None:
            return None
        found = self._sent.get(place)
        if found is None or len(found.gate) != rows:
            said = "none" if found is None else str(len(found.gate))
            raise PruningError(
                f"{path!r} sees {rows} rows, and its layer {place[0]!r} sent it {said} when it was tried; a layer must "
                "run as a whole, and send its tokens in the same way every time"
            )
        return found

    def _place(self, path: str) -> tuple[str, int] | None:
        """Return the layer and the number of the expert that a path lies in."""
        for mixture in self._mixtures:
            if not inside(parameter_path(path), mixture.experts):
                continue
            if mixture.stacked:
                index = path.rpartition("[")[2].partition("]")[0]
            else:
                index = path[len(mixture.experts) + 1 :].partition(".")[0]
            return (mixture.path, int(index)) if index.isdigit() else None
        return None

    def read(self, mixture: Mixture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out what a layer makes of the rows of a call.

        Raises:
            PruningError: If its output does not follow from those of its experts by gradients, or not linearly.
        """
        layer = self._model.get_submodule(mixture.path)
        put_out: dict[int, Tensor] = {}
        with torch.enable_grad(), _silent(layer, mixture, put_out.__setitem__), _saved():
            output = main_tensor(layer.forward(*_detached(args), **_detached(kwargs))).float()
        if not put_out or not output.requires_grad:
            raise PruningError(
                f"the mixture of experts {mixture.path!r} ({type(layer).__name__}) runs without gradients, so by how "
                "much it multiplies its experts' outputs cannot be seen; leave its groups out"
            )
        rows = list(put_out.values())
        number = torch.arange(len(output), device=output.device)
        gates = [self._gate(found, mixture, layer) for found in _gradients(output, number >= 0, rows)]
        entries = [torch.zeros(len(gate), dtype=torch.long) for gate in gates]
        for bit in range((len(output) - 1).bit_length()):
            has_bit = (number >> bit) & 1 == 1
            for gate, found, entry in zip(gates, _gradients(output, has_bit, rows), entries, strict=True):
                there = found.flatten(0, -2).mean(1, dtype=torch.float32).abs() > gate.abs() / 2
                entry += there.long().cpu() << bit
        for index, gate, entry in zip(put_out, gates, entries, strict=True):
            self._sent[mixture.path, index] = Sent(gate, entry, len(output))

    @staticmethod
    def _gate(gradient: Tensor, mixture: Mixture, layer: nn.Module) -> Tensor:
        rows = gradient.flatten(0, -2).float()
        if len(rows) and not torch.allclose(rows.amax(1), rows.amin(1), rtol=1e-3):
            raise PruningError(
                f"the mixture of experts {mixture.path!r} ({type(layer).__name__}) does not multiply the rows of its "
                "experts' outputs by one number each; leave its groups out"
            )
        return rows.mean(1)


def _gradients(output: Tensor, entries: Tensor, rows: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of the sum over some leading entries of `output` by each of `rows`; the graph stays."""
    ones = entries.to(output.dtype).view(-1, *[1] * (output.ndim - 1)).expand_as(output)
    return torch.autograd.grad(output, rows, ones, retain_graph=True)


@contextmanager
def _silent(layer: nn.Module, mixture: Mixture, tell: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Let all experts of a layer put out zeros, which are told by expert and take gradients."""
    name = mixture.experts.rpartition(".")[2]
    real = layer.get_submodule(name)
    if mixture.stacked:
        silent: nn.Module = _SilentStack(mixture.count, tell)
    else:
        silent = nn.ModuleList(_SilentExpert(index, tell) for index in range(mixture.count))
    setattr(layer, name, silent)
    try:
        yield
    finally:
        setattr(layer, name, real)


def _saved() -> saved_tensors_hooks:
    """Save for the backward pass what operations ask for, whatever is done with that around them."""
    return saved_tensors_hooks(Tensor.detach, lambda x: x)


class _SilentExpert(nn.Module):
    def __init__(self, index: int, tell: Callable[[int, Tensor], None]) -> None:
        super().__init__()
        self._index, self._tell = index, tell

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(x, requires_grad=True)
        self._tell(self._index, zeros)
        return zeros.clone()  # which may be written to


class _SilentStack(nn.Module):
    """Puts out zeros for rows (R, C) that are sorted by expert, of whose numbers a further argument tells."""

    def __init__(self, experts: int, tell: Callable[[int, Tensor], None]) -> None:
        super().__init__()
        self._experts, self._tell = experts, tell

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        sizes = counts.tolist()
        assert len(sizes) == self._experts
        parts = [x.new_zeros((size, x.shape[-1]), requires_grad=True) for size in sizes]
        for index, part in enumerate(parts):
            self._tell(index, part)
        padding = x.new_zeros((len(x) - sum(sizes), x.shape[-1]))
        return torch.cat([*parts, padding])


def _detached(values: Any) -> Any:
    """Return arguments without their graphs."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, dict):
        return {name: _detached(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_detached(value) for value in values)
    return values
