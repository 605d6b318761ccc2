"""The driver: runs a model, or watches whatever runs it, and tells who asked. The only code that calls the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pruning.calibration.attention.capture import AttentionCapture, Unseen
from pruning.calibration.attention.softmax import AttentionCall
from pruning.calibration.checkpointing import Checkpoints
from pruning.calibration.gradients import Gradients
from pruning.calibration.hooks import bypassed, frozen, parameter_gradients, without_own_checkpointing
from pruning.calibration.products import OnOperand, ProductCapture
from pruning.calibration.repeated import RepeatedBlocks
from pruning.calibration.routing import Gates, experts_with_gradients, in_batch_order
from pruning.calibration.step import Step, StepReader, check_finite
from pruning.calibration.sums import summable
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.groups.experts import Mixture
from pruning.models.families import FAMILIES, denoise
from pruning.models.outputs import joined, predict, tensors_in, with_tuple
from pruning.removal import BlockRemoval
from pruning.types import PrunableGroup, parameter_path

Progress = Callable[[int], None]
OnTensor = Callable[[Tensor, Step, Tensor], None]
"""Is told a tensor (S, ...), the step, and to which of the step's rows each of the S belongs."""
Told = list[OnTensor]
Make = Callable[[str, Told], OnOperand]
OnChange = Callable[[Tensor, Tensor, Step], None]
"""Is told two tensors (B, ...) and the step."""


@dataclass(frozen=True)
class SamplingRun:
    """A run of the model that is only watched, such as a pipeline generating from prompts.

    Attributes:
        generate: Takes nothing; called once per pass, so it must do the same every time (seed its generators).
        num_train_timesteps: Upper end of the timesteps that the model is called with.
    """

    generate: Callable[[], object]
    num_train_timesteps: float


class Driver:
    """Context manager that watches a model; all hooks are gone afterwards, and modes and gradients put back.

    Who wants to know something joins a list before the run starts, and is told once per batch, in the order in which
    the model comes by. That is all that an observer knows of a run: not in which batch size or round it comes, nor that
    blocks run again in a backward pass, nor that weights are there only while they are read (`pruning.models.stream`).
    The order is kept: steps before anything of a batch, attention before the rows that it weights, a batch's gradients
    before the end of its backward pass.

    Args:
        model: The denoiser.
        reader: Reads the step of each call.
        seed: Of the random signs that outputs are projected on.
        repeated: Blocks that run again in backward passes, instead of keeping what these need. Nobody is told anything
            of such second runs.

    Attributes:
        steps: Told when the denoiser is about to run.
        ends: Told when all is done, unless it ended by an exception.
        attention: Told the calls of an attention module, by its path, the step, and to which of the step's rows each
            entry of the call's batch belongs.
        optional: Attention modules of which nothing need be told.
        unseen: Those of them whose attention could not be seen in some call, and why.
        inputs: Told what enters a module, by its path; see `OnTensor`.
        outputs: Told what leaves a module.
        blocks: Told what enters and what leaves a block; see `OnChange`.
        ablations: Told the model's output with and without a block, at the price of a forward pass.
        gradients: Tells gradients; see there.
        gates: Whose the rows inside experts are, and how much they count; known when they come by.
    """

    def __init__(
        self, model: nn.Module, reader: StepReader, seed: int = 0, *, repeated: RepeatedBlocks | None = None
    ) -> None:
        self._model, self._reader = model, reader
        self.steps: list[Callable[[Step], None]] = []
        self.ends: list[Callable[[], None]] = []
        self.attention: dict[str, list[Callable[[AttentionCall, Step, Tensor], None]]] = defaultdict(list)
        self.optional: set[str] = set()
        self.unseen: dict[str, str] = {}
        self.inputs: dict[str, list[OnTensor]] = defaultdict(list)
        self.outputs: dict[str, list[OnTensor]] = defaultdict(list)
        self.blocks: dict[PrunableGroup, list[OnChange]] = defaultdict(list)
        self.ablations: dict[PrunableGroup, list[OnChange]] = defaultdict(list)
        self._checkpoints = Checkpoints(model, repeated or RepeatedBlocks(), self._unseen)
        self.gradients = Gradients(seed, self._checkpoints)
        self.gates = Gates(model)
        self._keys: dict[str, int] = {}
        self._step: Step | None = None
        self._paused = self._differentiates = False
        self._stack: ExitStack | None = None

    def __enter__(self) -> Driver:
        with ExitStack() as stack:
            stack.enter_context(frozen(self._model))
            stack.enter_context(experts_with_gradients(self._model))
            stack.enter_context(without_own_checkpointing(self._model))
            for listener in self.gradients.listeners:
                stack.enter_context(parameter_gradients(listener.parameters))
            start, end = self._unless_paused(self._start), self._unless_paused(self._end)
            stack.callback(self._model.register_forward_pre_hook(start, with_kwargs=True).remove)
            stack.callback(self._model.register_forward_hook(end).remove)
            for mixture in self.gates.layers([*self.inputs, *self.outputs]):
                module = self._model.get_submodule(mixture.path)
                hook = self._unless_paused(self._gate(mixture))
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for path, hook in self._of_modules(self.inputs, self._input).items():
                module = self._model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(_first_of(hook), with_kwargs=True).remove)
            for path, hook in self._of_modules(self.outputs, self._output).items():
                module = self._model.get_submodule(path)
                stack.callback(module.register_forward_hook(_result_of(hook)).remove)
            for block, told in self.blocks.items():
                assert block.removal is not None
                first, last = block.removal.between or (block.module, block.module)
                enter, leave = self._block(block, block.removal, told)
                hook = self._model.get_submodule(first).register_forward_pre_hook
                stack.callback(hook(enter, with_kwargs=True).remove)
                stack.callback(self._model.get_submodule(last).register_forward_hook(leave).remove)
            attend = self._unless_paused(self._attend)
            self._capture = AttentionCapture(self._model, self.attention, attend, self._pass_by)
            stack.enter_context(self._capture)
            of_products = (
                self._of_products(self.inputs, self._input),
                self._of_products(self.outputs, self._output),
            )
            stack.enter_context(ProductCapture(self._model, *of_products))
            if self.gradients.wanted:
                stack.enter_context(self._checkpoints)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._step = None
        self.gradients.restart()
        if self._stack is not None:
            self._stack.close()
        for tell in self.ends if kind is None else ():
            tell()

    def run(self, source: NoisedBatches | SamplingRun, progress: Progress | None = None) -> None:
        """Show the model what `source` has.

        Args:
            source: Noised batches, or a sampling run to watch.
            progress: Called after each noised batch with its number of rows.
        """
        if isinstance(source, SamplingRun):
            with torch.no_grad():
                source.generate()
            return
        for batch in source:
            self._reader.identify(batch.sample_ids, batch.bucket, batch.timesteps, batch.branches)
            self._run_batch(batch)
            if progress is not None:
                progress(len(batch.sample_ids))

    def _run_batch(self, batch: NoisedBatch) -> None:
        """Run one batch forwards, backwards if gradients are wanted, and once without each block that is ablated."""
        output = self._run_both_ways(batch) if self.gradients.wanted else self._run_forwards(batch)
        for block, told in self.ablations.items():
            with self._unseen():
                without = prediction_without(self._model, batch, [block], self.step)
            for tell in told:
                tell(summable(output), summable(without), self.step)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """Tell nobody of what runs."""
        before, self._paused, self._capture.paused = self._paused, True, True
        try:
            yield
        finally:
            self._paused = self._capture.paused = before

    @torch.no_grad()
    def _run_forwards(self, batch: NoisedBatch) -> Tensor:
        return prediction(self._model, batch)

    @torch.enable_grad()
    def _run_both_ways(self, batch: NoisedBatch) -> Tensor:
        call = tree_map_only(Tensor, Tensor.detach, dict(batch.call))
        batch = replace(batch, call=call)  # so that no backward pass goes further than the model
        self._checkpoints.try_out(call, lambda: prediction(self._model, batch))
        self._differentiates = bool(self.gradients.ends)
        target = batch.target
        if target is not None and batch.read is None and not _is_known(self._model):
            target = joined(target, len(batch.timesteps))
        try:
            output = prediction(self._model, batch)
            self.gradients.backward(output, target, self.step)
        except NotImplementedError as error:
            raise PruningError(
                f"no gradient can be taken of {type(self._model).__name__} on this device ({error}); choose a "
                "criterion that needs none, such as obs, or calibrate on another device"
            ) from error
        finally:
            self._differentiates = False
        return output.detach()

    def _of_modules(self, told: Mapping[str, Told], make: Make) -> dict[str, OnOperand]:
        return {path: make(path, all_told) for path, all_told in told.items() if parameter_path(path) == path}

    def _of_products(self, told: Mapping[str, Told], make: Make) -> dict[str, OnOperand]:
        return {path: make(path, all_told) for path, all_told in told.items() if parameter_path(path) != path}

    def _unless_paused(self, hook: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: None if self._paused else hook(*args)

    def _coming_by(self, see: OnOperand) -> OnOperand:
        """Return who is shown what enters or leaves a module, in first runs."""

        def hook(x: Tensor) -> None:
            if self._paused:
                self._checkpoints.revisit(x)
                return
            self._checkpoints.visit(x)
            see(x)

        return hook

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
        self._capture.restart()
        self.gradients.restart()
        self._step = self._reader.read(args, kwargs)
        for tell in self.steps:
            tell(self._step)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for tensor in tensors_in(output):
            if tensor.is_floating_point() and tensor.numel():
                check_finite(tensor, f"the output of {type(module).__name__}", self.step.describe)

    def _pass_by(self, path: str, error: Unseen) -> None:
        """Note that an attention cannot be seen, if nobody needs it."""
        if path not in self.optional:
            raise error
        self.unseen.setdefault(path, str(error))

    def _gate(self, mixture: Mixture) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with self._unseen():
                self.gates.read(mixture, args, kwargs)

        return read

    def _attend(self, call: AttentionCall) -> None:
        count, batch = len(call.query), len(self.step.samples)
        if count % batch:
            raise Unseen(
                f"attention {call.path!r} sees a batch of {count}, which is no multiple of the denoiser's batch of "
                f"{batch}, and attention is measured sample by sample; calibrate with a batch size of 1"
            )
        keys = call.key.shape[-2]
        if call.path in self.optional and self._keys.setdefault(call.path, keys) != keys:
            raise Unseen(
                f"attention {call.path!r} has {keys} keys in one call and {self._keys[call.path]} in another, as its "
                "prompts or samples are of different lengths"
            )
        row_of = self.step.row_of(count, f"attention {call.path!r}")
        tensors = {name: summable(getattr(call, name)) for name in ("query", "key", "value")}
        for tell in self.attention[call.path]:
            tell(replace(call, **tensors), self.step, row_of)

    def _row_of(self, path: str, count: int) -> Tensor:
        """Return to which of the step's rows each of the leading entries of what enters or leaves a module belongs."""
        sent = self.gates.of(path, count)
        if sent is None:
            return self.step.row_of(count, path, in_batch_order(self._model, path))
        in_order = in_batch_order(self._model, self.gates.layers([path])[0].path)
        return self.step.row_of(sent.entries, path, in_order)[sent.entry]

    def _input(self, path: str, told: Told) -> OnOperand:
        def see(x: Tensor) -> None:
            row_of = self._row_of(path, len(x))
            if self._differentiates and not torch.is_grad_enabled():
                raise PruningError(
                    f"{path!r} runs without gradients, which its model switches off; choose a criterion that needs "
                    "none, or leave its group out"
                )
            check_finite(x, f"the input of {path!r}", lambda rows: self.step.describe(row_of[rows].tolist()))
            for tell in told:
                tell(x, self.step, row_of)

        return self._coming_by(see)

    def _output(self, path: str, told: Told) -> OnOperand:
        def see(y: Tensor) -> None:
            row_of = self._row_of(path, len(y))
            for tell in told:
                tell(y, self.step, row_of)

        return self._coming_by(see)

    def _block(
        self, block: PrunableGroup, removal: BlockRemoval, told: list[OnChange]
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return what to do where the stream enters a block, and where it leaves it."""
        entered: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            entered[:] = [removal.stream(args, kwargs)]

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before, after = entered.pop(), removal.leaving(output)
            check_finite(after, f"the output of {block.module!r}", self.step.describe)
            for tell in told:
                tell(summable(before), summable(after), self.step)

        return self._unless_paused(enter), self._unless_paused(leave)


def prediction(model: nn.Module, batch: NoisedBatch) -> Tensor:
    """Return what a model predicts of a batch, or, of a class that is not registered, all that it puts out."""
    if batch.read is not None:
        return batch.read(model(**with_tuple(model, batch.call)))
    if _is_known(model):
        return denoise(model, batch.call)
    return predict(model, batch.call, len(batch.timesteps))


@torch.no_grad()
def prediction_without(
    model: nn.Module, batch: NoisedBatch, blocks: Sequence[PrunableGroup], step: Step
) -> Tensor:
    """Return the prediction with `blocks` passed by; NaN or infinity in it is a PruningError."""
    with bypassed(model, *blocks):
        without = prediction(model, batch)
    names = ", ".join(repr(block.module) for block in blocks)
    check_finite(without, f"the output without block{'s' * (len(blocks) > 1)} {names}", step.describe)
    return without


def _is_known(model: nn.Module) -> bool:
    return type(model).__name__ in FAMILIES


def _first_of(tell: OnOperand) -> Callable[..., None]:
    """Return a hook that tells a module's first argument."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tell(args[0] if args else next(iter(kwargs.values())))

    return hook


def _result_of(tell: OnOperand) -> Callable[..., None]:
    return lambda module, args, output: tell(output)
