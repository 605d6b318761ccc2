"""The backward passes of a batch: gradients of a loss by activations that came by, and by parameters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from pruning.calibration.checkpointing import Checkpoints
from pruning.calibration.draws import random_signs
from pruning.calibration.step import Step, check_finite
from pruning.errors import PruningError

T = TypeVar("T")


class ParameterListener(Protocol):
    """Who is told the gradients of the data loss by parameters, each as soon as the backward pass has it."""

    parameters: Mapping[str, nn.Parameter]

    def weigh(self, losses: Tensor, step: Step) -> Tensor:
        """Return the weight of each row's loss (B,) in what is differentiated; rows of weight 0 do not count."""
        ...

    def take(self, path: str, gradient: Tensor) -> None:
        """Take the gradient by one parameter; it is dropped afterwards."""
        ...


def data_losses(output: Tensor, target: Tensor | None, step: Step, seed: int) -> Tensor:
    """Return the mean squared error of each row, (B,), with its graph; without a target that is a PruningError."""
    if target is None:
        raise PruningError(
            "the data loss needs a target, and the batch has none; give batches that have targets"
        )
    return (output.float() - target.to(output.device, torch.float32)).square().flatten(1).mean(1)


def projections(output: Tensor, target: Tensor | None, step: Step, seed: int) -> Tensor:
    """Return the output's projection on random signs v, ``<v, output>``, (B,), with its graph."""
    signs = random_signs(seed, step.keys, step.timesteps.tolist(), output.shape[1:])
    return (output.float() * signs.to(output.device)).flatten(1).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor | None, Step, int], Tensor]] = {
    "data": data_losses,
    "output": projections,
}
"""What can be differentiated: one number per row of the batch."""


class Gradients:
    """Differentiates forwards, and tells each gradient that is wanted as soon as the backward pass has it.

    Args:
        seed: Of the random signs.
        checkpoints: The blocks that run again in backward passes.

    Attributes:
        ends: By loss, one of `LOSSES`, which is then differentiated: told when its gradients have been handed out.
        listeners: Told the gradients of the data loss by parameters, which take gradients from the start of the run.
    """

    def __init__(self, seed: int, checkpoints: Checkpoints) -> None:
        self._seed, self._checkpoints = seed, checkpoints
        self._wanted: Counter[str] = Counter()
        self._without = False
        self._loss = ""
        self.ends: dict[str, list[Callable[[Step], None]]] = defaultdict(list)
        self.listeners: list[ParameterListener] = []

    @property
    def wanted(self) -> bool:
        """Whether `backward` is to be called after every forward."""
        return bool(self.ends or self.listeners)

    def want(
        self,
        loss: str,
        x: Tensor,
        tell: Callable[[T, Tensor], None],
        read: Callable[[Tensor], T] = Tensor.detach,
    ) -> None:
        """Tell ``read(x)`` and the gradient of a loss that is differentiated by a tensor that comes by just now.

        A tensor that no gradient reaches yet becomes a leaf.

        Args:
            loss: One of `LOSSES`.
            x: The tensor. Who asks must not keep it, as its block may run again.
            tell: Is told, unless no gradient reaches x.
            read: Takes what is to be told of x besides.
        """
        if not torch.is_grad_enabled():
            self._without = True
            return
        if not x.requires_grad:
            x.requires_grad_(True).register_post_accumulate_grad_hook(_drop)
        self._wanted[loss] += 1
        value = self._checkpoints.later(x, read, lambda: self._loss == loss)
        x.register_hook(partial(self._told, loss, tell, value))

    def _told(
        self, loss: str, tell: Callable[[T, Tensor], None], value: Callable[[], T], gradient: Tensor | None
    ) -> None:
        if loss == self._loss and gradient is not None:
            with torch.no_grad():
                tell(value(), gradient)

    def restart(self) -> None:
        """Forget what the last forward left."""
        self._wanted.clear()
        self._without = False
        self._checkpoints.restart()

    def backward(self, output: Tensor, target: Tensor | None, step: Step) -> None:
        """Differentiate a forward: one backward pass per listener to parameters, one per loss.

        Args:
            output: Model output (B, C, H, W), with its graph.
            target: What the model should predict, same shape; None where only losses without one are differentiated.
            step: The denoiser's call.

        Raises:
            PruningError: If output and target differ in shape, a loss or gradient holds NaN or infinity, or nothing
                came by of which the gradient is wanted.
        """
        if target is not None and output.shape != target.shape:
            raise PruningError(
                f"the target has shape {tuple(target.shape)}, but the model's output {tuple(output.shape)}; give a "
                "batch whose target has the form of the output"
            )
        names = sorted({*self.ends, "data"} if self.listeners else self.ends)
        losses = {name: LOSSES[name](output, target, step, self._seed) for name in names}
        for name, by_row in losses.items():
            check_finite(by_row, f"the {name} loss of calibration", step.describe)
        left = len(self.listeners) + len(self.ends)
        for listener in self.listeners:
            left -= 1
            self._by_parameters(listener, losses["data"], step, retain_graph=left > 0)
        for name in sorted(self.ends):
            left -= 1
            self._by_activations(name, losses[name], step, retain_graph=left > 0)
        self.restart()

    def _by_activations(self, loss: str, by_row: Tensor, step: Step, *, retain_graph: bool) -> None:
        if not self._wanted[loss] and self._without:
            raise PruningError(
                "gradient statistics were asked for, but no consumer ran with gradients enabled"
            )
        if not by_row.requires_grad:  # no group of the round has consumers, or no token was sent to them
            return
        with ExitStack() as stack:
            for parameter in {p for listener in self.listeners for p in listener.parameters.values()}:
                stack.callback(parameter.register_post_accumulate_grad_hook(_drop).remove)
            stack.enter_context(self._differentiating(loss))
            by_row.sum().backward(retain_graph=retain_graph)
        with torch.no_grad():
            for tell_end in self.ends[loss]:
                tell_end(step)

    @contextmanager
    def _differentiating(self, loss: str = "") -> Iterator[None]:
        """Let gradients by activations of this loss be told, if any."""
        self._checkpoints.start_pass()
        self._loss = loss
        try:
            yield
        finally:
            self._loss = ""

    def _by_parameters(
        self, listener: ParameterListener, losses: Tensor, step: Step, *, retain_graph: bool
    ) -> None:
        weights = listener.weigh(losses.detach(), step)
        if not bool(weights.any()):
            return

        def take(path: str) -> Callable[[Tensor], None]:
            def hook(parameter: Tensor) -> None:
                gradient, parameter.grad = parameter.grad, None
                assert gradient is not None
                rows = range(len(step.keys))
                check_finite(gradient[None], f"the gradient by {path!r}", lambda _: step.describe(rows))
                listener.take(path, gradient)

            return hook

        with ExitStack() as stack:
            for path, parameter in listener.parameters.items():
                stack.callback(parameter.register_post_accumulate_grad_hook(take(path)).remove)
            stack.enter_context(self._differentiating())
            torch.autograd.backward(
                losses @ weights.to(losses.device, losses.dtype),
                inputs=list(listener.parameters.values()),
                retain_graph=retain_graph,
            )


def _drop(leaf: Tensor) -> None:
    leaf.grad = None
