"""The hooks: reports steps, attention calls, consumers' inputs and blocks of whatever runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn

from pruning.calibration.capture import AttentionCapture
from pruning.calibration.consumer import Consumer, check_finite
from pruning.calibration.softmax import AttentionCall
from pruning.calibration.step import Step, StepReader
from pruning.calibration.sums import summable
from pruning.errors import PruningError


class Listener(Protocol):
    """What an instrument tells; whoever does not listen to something leaves its method out."""

    def on_step(self, step: Step) -> None:
        """The denoiser is about to run."""

    def on_attention(self, call: AttentionCall, step: Step, owner: Tensor) -> None:
        """An attention module attends; `owner` says which of the step's rows each of its batch is."""

    def on_input(self, consumer: Consumer, x: Tensor, step: Step, owner: Tensor) -> None:
        """Rows enter a consumer."""

    def on_output(self, consumer: Consumer, y: Tensor, step: Step, owner: Tensor) -> None:
        """Rows leave a consumer whose output is watched."""

    def on_block(self, path: str, before: Tensor, after: Tensor, step: Step) -> None:
        """A block ran."""


class Instrument:
    """Context manager that watches a model and tells a listener; all hooks are gone afterwards.

    Args:
        model: The denoiser.
        sites: Paths of the attention modules to watch.
        consumers: Consumers whose input is watched.
        outputs: Consumers whose output is watched.
        blocks: Paths of the blocks to watch.
        reader: Reads the step of each call.
        listener: Is told.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        consumers: Sequence[Consumer],
        outputs: Sequence[Consumer],
        blocks: Sequence[str],
        reader: StepReader,
        listener: Listener,
    ) -> None:
        self._model = model
        self._reader = reader
        self._listener = listener
        self._capture = AttentionCapture(model, sites, self._attention)
        self._consumers, self._outputs = _by_path(consumers), _by_path(outputs)
        self._blocks = list(blocks)
        self._step: Step | None = None
        self._paused = False
        self._stack: ExitStack | None = None

    def __enter__(self) -> Instrument:
        with ExitStack() as stack:
            model = self._model
            stack.callback(model.register_forward_pre_hook(self._start, with_kwargs=True).remove)
            stack.callback(model.register_forward_hook(self._end).remove)
            for path, consumers in self._consumers.items():
                module = model.get_submodule(path)
                stack.callback(
                    module.register_forward_pre_hook(self._input(consumers), with_kwargs=True).remove
                )
            for path, consumers in self._outputs.items():
                stack.callback(
                    model.get_submodule(path).register_forward_hook(self._output(consumers)).remove
                )
            for path in self._blocks:
                hook = model.get_submodule(path).register_forward_hook(self._block(path), with_kwargs=True)
                stack.callback(hook.remove)
            stack.enter_context(self._capture)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._step = None
        if self._stack is not None:
            self._stack.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away, while the model runs for another reason."""
        self._paused, before = True, self._paused
        try:
            yield
        finally:
            self._paused = before

    @property
    def step(self) -> Step:
        """The denoiser's current or last call.

        Raises:
            PruningError: If it has not run.
        """
        if self._step is None:
            raise PruningError(
                f"a part of {type(self._model).__name__} ran outside a call of the whole model; calibration reads "
                "timestep and samples from the whole model's call"
            )
        return self._step

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._paused:
            return
        self._capture.restart()
        self._step = self._reader.read(args, kwargs)
        self._listener.on_step(self._step)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._paused:
            check_finite(main_tensor(output), f"the output of {type(module).__name__}", self.step.describe)

    def _attention(self, call: AttentionCall) -> None:
        if not self._paused:
            owner = self.step.owner(call.query.shape[0], f"attention {call.path!r}")
            tensors = {name: summable(getattr(call, name)) for name in ("query", "key", "value")}
            self._listener.on_attention(replace(call, **tensors), self.step, owner)

    def _input(self, consumers: list[Consumer]) -> Any:
        path = consumers[0].group.consumer

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if self._paused:
                return
            x = args[0] if args else next(iter(kwargs.values()))
            owner = self.step.owner(x.shape[0], path)
            check_finite(x, f"the input of {path!r}", lambda rows: self.step.describe(owner[rows].tolist()))
            for consumer in consumers:
                self._listener.on_input(consumer, x, self.step, owner)

        return hook

    def _output(self, consumers: list[Consumer]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if not self._paused:
                owner = self.step.owner(output.shape[0], consumers[0].group.consumer)
                for consumer in consumers:
                    self._listener.on_output(consumer, output, self.step, owner)

        return hook

    def _block(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            if not self._paused:
                before, after = block_input(args, kwargs), main_tensor(output)
                check_finite(after, f"the output of {path!r}", self.step.describe)
                self._listener.on_block(path, summable(before), summable(after), self.step)

        return hook


def _by_path(consumers: Sequence[Consumer]) -> dict[str, list[Consumer]]:
    found: dict[str, list[Consumer]] = {}
    for consumer in consumers:
        found.setdefault(consumer.group.consumer, []).append(consumer)
    return found


def block_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states that a block's call gets: its first argument."""
    return args[0] if args else kwargs["hidden_states"]


def main_tensor(output: Any) -> Tensor:
    """Return the first tensor of a module's output: a tensor, a tuple, or a diffusers output."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def bypassed(model: nn.Module, path: str) -> Iterator[None]:
    """Make the block at `path` hand on its input, as the identity that surgery would put in its place."""

    def skip(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        hidden = block_input(args, kwargs)
        if isinstance(output, Tensor):
            return hidden
        return (hidden, *output[1:]) if isinstance(output, tuple) else type(output)(hidden)

    handle = model.get_submodule(path).register_forward_hook(skip, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients; both are put back as they were, module by module."""
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
