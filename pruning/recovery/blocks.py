"""Block-wise distillation: each cut block learns to put out what its dense twin does on the same input.

Nothing larger than a block is trained, so that a model which does not fit into memory can be recovered: the dense model
runs (from disk, if it must), what enters its blocks is kept on disk, and then one block after the other is trained by
the loop that trains whole models, with its twin as teacher. Errors that add up over the blocks are not seen, for the
inputs are the dense model's (as in layer-by-layer distillation: ZeroQuant, arXiv 2206.01861). A block that does not get
better on inputs that were held out stays as it was cut.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import shutil
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pruning.calibration.driver import prediction
from pruning.data import NoisedBatches
from pruning.data.batches import Path as Where
from pruning.data.batches import move
from pruning.errors import PruningError
from pruning.files import (
    check_writable,
    file_name,
    read_json,
    remove,
    write_errors,
    write_json,
    written_whole,
)
from pruning.groups import find_groups
from pruning.groups.listed import listed_blocks
from pruning.models.outputs import joined, tensors_in
from pruning.on_demand import OnDemand, stored_at
from pruning.recovery.batches import Batches, Share, TrainingBatch, sample_order
from pruning.recovery.checkpoints import fingerprint
from pruning.recovery.loop import RecoveryProgress
from pruning.recovery.training import Progress, train_back
from pruning.settings import Recover
from pruning.store import changes
from pruning.surgery.cut import apply_with
from pruning.surgery.origins import Origins
from pruning.surgery.shared import owners_of
from pruning.types import PrunableGroup, PruningPlan, inside, slices_of

logger = logging.getLogger(__name__)

HELD_OUT = 8
"""One of so many calls is held out (at least one, if there are two): it judges whether a block got better."""

DISK = 0.25
"""Share of the free disk that inputs of blocks may take at a time; more blocks take more runs of the dense model."""


@dataclass(frozen=True)
class Twin:
    """A block of the slim model that lost something, and the dense one that it was.

    Attributes:
        slim: Path in the slim model.
        dense: Path in the dense model.
    """

    slim: str
    dense: str


@dataclass(frozen=True)
class BlockResult:
    """What training did for one block.

    Attributes:
        block: Path in the slim model.
        before: Squared error of its output on held-out inputs, relative to the square of the dense block's.
        after: The same, trained.
        kept: Whether the trained weights are taken.
        losses: Of each step.
        seconds: Spent training.
    """

    block: str
    before: float
    after: float
    kept: bool
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class BlocksResult:
    """What block-wise recovery did.

    Attributes:
        blocks: By block, in the model's order.
        changed: New weights of the slim model by name, read from disk when they are asked for.
    """

    blocks: tuple[BlockResult, ...]
    changed: Mapping[str, Tensor]


def twins(dense: nn.Module, plan: PruningPlan) -> list[Twin]:
    """Return the blocks of a slim model that are not as they were, and what each was in the dense model.

    Args:
        dense: The dense model, on the meta device or not; it is not changed.
        plan: What the slim model was cut by.
    """
    slim = copy.deepcopy(dense).to("meta")
    groups = find_groups(slim)
    blocks = _closed(slim, listed_blocks(slim), plan.completed(groups).cuts(groups))
    shapes = {name: tensor.shape for name, tensor in slim.state_dict().items()}
    origins = Origins(slim, {}, plan)
    origins.take_ranks()
    apply_with(origins, slim, plan, groups)
    found: dict[str, Twin] = {}
    for name, tensor in slim.state_dict(keep_vars=True).items():
        source = origins.of(tensor).name
        dense_path = next((path for path in blocks if source.startswith(f"{path}.")), None)
        if dense_path is None or shapes.get(source) == tensor.shape:
            continue
        rest = source.removeprefix(dense_path)
        if name.endswith(rest):
            found.setdefault(dense_path, Twin(name.removesuffix(rest), dense_path))
    return [found[path] for path in blocks if path in found]


def _closed(model: nn.Module, blocks: list[str], cut: Iterable[PrunableGroup]) -> list[str]:
    """Return blocks none of which shares a group that is cut with what is around it: some are parts of others then.

    So what enters and leaves a block is as wide as before.
    """
    for group in cut:
        owners = {part.path.rpartition(".")[0] for part in slices_of(group)}
        touched = [path for path in blocks if any(inside(owner, path) for owner in owners)]
        if not touched or all(inside(owner, touched[0]) for owner in owners):
            continue
        names = zip(*(owner.split(".") for owner in owners), strict=False)
        around = [one[0] for one in takewhile(lambda one: len({*one}) == 1, names)]
        while around and type(model.get_submodule(".".join(around))).forward is nn.Module.forward:
            around = around[:-1]
        whole = ".".join(around)
        where = blocks.index(touched[0])
        blocks = [
            *blocks[:where],
            *([whole] if whole else []),
            *(path for path in blocks[where:] if path not in touched and not inside(path, whole)),
        ]
    return blocks


def recover_blocks(
    student: nn.Module,
    teacher: nn.Module,
    blocks: Sequence[Twin],
    source: NoisedBatches,
    settings: Recover,
    *,
    folder: str | Path,
    identity: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> BlocksResult:
    """Train blocks of `student` one by one, each for `settings.steps` steps; neither model is changed.

    What an earlier call of the same left in `folder` is gone on from: whole blocks are not trained again, and a block
    that was being trained goes on from its checkpoint.

    Args:
        student: The slim denoiser; its weights may lie in files.
        teacher: The dense denoiser; so may its.
        blocks: Result of `twins`.
        source: What the dense model is shown; a micro-batch is one of its calls.
        settings: How to train; what it says of labels and targets is not read, for blocks see neither.
        folder: Where inputs, checkpoints and trained weights lie meanwhile.
        identity: What tells the same recovery from others there (JSON types). None: settings, weights and what is shown
            first.
        seed: Of every draw.
        device: ``cpu`` or the accelerator's kind; None takes what accelerate finds.
        progress: Called after every step, counted over all blocks.

    Raises:
        PruningError: If no block lost anything, the source has no batch, the folder cannot be written or holds another
            recovery, a block cannot be called on what was recorded, a loss is not finite, or in one of several
            processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PruningError("recovery by blocks: it works in one process; start it without accelerate launch")
    if not blocks:
        raise PruningError(
            "recovery by blocks: no block of the model lost anything, so that none can be trained"
        )
    folder = Path(folder)
    check_writable("recovery by blocks", folder, 0)
    settings = replace(settings, distill_weight=1.0, loss_weighting="uniform", label_dropout=0.0)
    settings.check("recovery")
    if identity is None:
        seen = {"blocks": [vars(twin) for twin in blocks], "shown": source.digest(), "rows": source.rows}
        identity = fingerprint(settings, seed, student, teacher, seen)
    _claim(folder, identity)
    if settings.max_seconds is not None:
        settings = replace(settings, max_seconds=settings.max_seconds / len(blocks))
    results: dict[str, BlockResult] = {}
    for twin in blocks:
        if (done := read_json(_place(folder, twin) / RESULT)) is not None:
            results[twin.slim] = BlockResult(**{**done, "losses": tuple(done["losses"])})
    left = [twin for twin in blocks if twin.slim not in results]
    served = _served_elsewhere(student, blocks)
    for some, read in _chunks(teacher, left, source, folder):
        with write_errors("inputs of blocks", folder, "Trained blocks there are whole"):
            recordings = _record(teacher, some, source, folder)
        for twin in some:
            place, before = _place(folder, twin), len(results)
            told = partial(_told, progress, before, len(blocks), settings.steps)
            held = served[twin] | read[twin]
            results[twin.slim] = _train(
                student, teacher, twin, recordings[twin], held, settings, place, seed, device, told
            )
            remove(place / INPUTS)
    return BlocksResult(
        tuple(results[twin.slim] for twin in blocks),
        _in_files({twin.slim: _place(folder, twin) / WEIGHTS for twin in blocks if results[twin.slim].kept}),
    )


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write down what the folder is of; what is there of another recovery is a PruningError."""
    known = read_json(folder / IDENTITY, "delete the folder")
    if known is not None and (differing := changes(known, identity)):
        words = "; ".join(f"{place} was {old!r}, is {new!r}" for place, old, new in differing[:3])
        raise PruningError(
            f"recovery by blocks: {folder} holds another one ({words}); name another folder, or delete it"
        )
    write_json(folder / IDENTITY, identity)


IDENTITY = "recovery.json"
RESULT, WEIGHTS, INPUTS, CHECKPOINTS = "result.json", "weights.safetensors", "inputs", "checkpoints"


def _in_files(files: Mapping[str, Path]) -> Mapping[str, Tensor]:
    """Return weights by name in the model, of files by path of the block; they are read when they are asked for."""
    places: dict[str, tuple[Path, str]] = {}
    for block, path in files.items():
        with safe_open(path, "pt") as file:
            places |= {f"{block}.{name}": (path, name) for name in file.keys()}  # noqa: SIM118
    return OnDemand(places, stored_at)


# What enters the dense blocks.


@dataclass(frozen=True)
class Recorded:
    """Calls of one block, on disk.

    Attributes:
        files: One for each batch that was shown, or call of the block in it.
    """

    files: tuple[Path, ...]

    @property
    def held_out(self) -> tuple[Path, ...]:
        """Those that judge."""
        return self.files[HELD_OUT - 1 :: HELD_OUT] or self.files[1:][-1:]

    @property
    def shown(self) -> tuple[Path, ...]:
        """Those that are trained on."""
        return tuple(file for file in self.files if file not in self.held_out)


def _chunks(
    teacher: nn.Module, blocks: Sequence[Twin], source: NoisedBatches, folder: Path
) -> Iterator[tuple[list[Twin], dict[Twin, set[str]]]]:
    """Yield the blocks, as many at a time as their inputs have room on the disk, and what is read of them elsewhere."""
    if not blocks:
        return
    sizes = dict.fromkeys(blocks, 0)

    def count(twin: Twin, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        sizes[twin] += sum(tensor.nbytes for tensor in tensors_in([args, kwargs]))

    with _reads_elsewhere(teacher, blocks) as read:
        rows = _watch(teacher, blocks, replace(source, make=lambda: islice(source.make(), 1)), count)
    if not rows:
        raise PruningError(
            "recovery by blocks: nothing is shown to the dense model; give at least one sample"
        )
    for twin in blocks:
        sizes[twin] *= -(-max(source.rows, rows) // rows)
    room, some, taken = DISK * shutil.disk_usage(folder).free, list[Twin](), 0.0
    for twin in blocks:
        if some and taken + sizes[twin] > room:
            yield some, read
            some, taken = [], 0.0
        some.append(twin)
        taken += sizes[twin]
    yield some, read


@contextmanager
def _reads_elsewhere(teacher: nn.Module, blocks: Sequence[Twin]) -> Iterator[dict[Twin, set[str]]]:
    """Find the modules in each block that the model also calls while the block does not run, by path in the block.

    Such as the embedder of DiT's first block, which the output is conditioned by: what the block would win by changing
    it is lost there.
    """
    found: dict[Twin, set[str]] = {twin: set() for twin in blocks}
    with ExitStack() as stack:
        for twin in blocks:
            block, running = teacher.get_submodule(twin.dense), [0]

            def enter(*_: Any, running: list[int] = running) -> None:
                running[0] += 1

            def leave(*_: Any, running: list[int] = running) -> None:
                running[0] -= 1

            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave, always_call=True).remove)
            for path, part in block.named_modules():

                def see(*_: Any, twin: Twin = twin, path: str = path, running: list[int] = running) -> None:
                    if not running[0]:
                        found[twin].add(path)

                if path:
                    stack.callback(part.register_forward_pre_hook(see).remove)
        yield found


def _served_elsewhere(student: nn.Module, blocks: Sequence[Twin]) -> dict[Twin, set[str]]:
    """Return the modules in each block that stand for others outside of it, too, by path in the block."""
    pairs = owners_of(student).items()
    return {
        twin: {
            owner.removeprefix(f"{twin.slim}.")
            for path, owner in pairs
            if inside(owner, twin.slim) and not inside(path, twin.slim)
        }
        for twin in blocks
    }


def _record(
    teacher: nn.Module, blocks: Sequence[Twin], source: NoisedBatches, folder: Path
) -> dict[Twin, Recorded]:
    """Run the dense model on all batches, and write what enters the blocks."""
    files: dict[Twin, list[Path]] = {twin: [] for twin in blocks}
    for twin in blocks:
        remove(_place(folder, twin) / INPUTS)
        (_place(folder, twin) / INPUTS).mkdir(parents=True)

    def write(twin: Twin, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        path, written = _place(folder, twin) / INPUTS / f"{len(files[twin]):06d}.pt", io.BytesIO()
        try:
            torch.save(_copied({"args": args, "kwargs": dict(kwargs)}), written)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise PruningError(
                f"recovery by blocks: what block {twin.dense!r} is called with cannot be written to a file ({error}); "
                "use recover.method=whole"
            ) from error
        path.write_bytes(written.getbuffer())
        files[twin].append(path)

    _watch(teacher, blocks, source, write)
    return {twin: Recorded(tuple(found)) for twin, found in files.items()}


def _copied(value: Any) -> Any:
    """Return arguments with tensors on the CPU that hold no more than themselves: a view is saved with all it is of."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True).contiguous(), value)


@torch.no_grad()
def _watch(teacher: nn.Module, blocks: Sequence[Twin], source: NoisedBatches, tell: Any) -> int:
    """Show the dense model all batches; `tell` is told what enters the blocks. Returns how many rows were shown."""
    rows = 0
    with ExitStack() as stack:
        for twin in blocks:

            def see(module: nn.Module, args: Any, kwargs: Any, twin: Twin = twin) -> None:
                tell(twin, args, kwargs)

            block = teacher.get_submodule(twin.dense)
            stack.callback(block.register_forward_pre_hook(see, with_kwargs=True).remove)
        for batch in source:
            prediction(teacher, batch)
            rows += len(batch.sample_ids)
    return rows


# Training one block.


class Called(nn.Module):
    """A block that takes its arguments as two: by position and by name.

    Args:
        block: The block.
        halves: Whether it takes halves; else they are made float32.
    """

    def __init__(self, block: nn.Module, *, halves: bool) -> None:
        super().__init__()
        self.block, self._halves = block, halves

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the block."""
        if not self._halves:
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return self.block(*args, **kwargs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class InputSource:
    """Training batches of what enters a block.

    Attributes:
        files: Its recorded calls.
        share: What this process trains on.
    """

    files: Sequence[Path]
    share: Share

    def batches(self, first_step: int, last_step: int) -> Generator[TrainingBatch, None, None]:
        """Yield the micro-batches of steps ``[first_step, last_step)``, in order: recorded calls, epoch by epoch."""
        many = self.share.settings.gradient_accumulation
        for number in range(first_step * many, last_step * many):
            chosen = int(sample_order(len(self.files), number, 1, self.share.seed))
            yield self.batch(self.files[chosen], number)

    def batch(self, path: Path, position: int = 0) -> TrainingBatch:
        """Return one recorded call, in the types that it was made in."""
        call = move(torch.load(path, weights_only=False), self.share.device, None)
        one = torch.zeros(1, dtype=torch.long)
        return TrainingBatch(
            call, None, one.to(self.share.device), one, one.bool(), position, exact={*_paths(call)}
        )


def _paths(value: Any, path: Where = ()) -> Iterator[Where]:
    """Yield where tensors are in arguments."""
    if isinstance(value, Tensor):
        yield path
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _paths(entry, (*path, name))
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _paths(entry, (*path, number))


def _train(
    student: nn.Module,
    teacher: nn.Module,
    twin: Twin,
    recorded: Recorded,
    held: Collection[str],
    settings: Recover,
    place: Path,
    seed: int,
    device: str | None,
    progress: Progress,
) -> BlockResult:
    """Train one block; its new weights, if they are better, lie in `place` then, in the slim model's types.

    What lies in modules that are `held`, by path in the block, stays as it is.
    """
    slim = Called(copy.deepcopy(student.get_submodule(twin.slim)).requires_grad_(True), halves=False)
    dense = Called(copy.deepcopy(teacher.get_submodule(twin.dense)).requires_grad_(False), halves=True).eval()
    types = {name: tensor.dtype for name, tensor in slim.block.state_dict().items()}
    for name, parameter in slim.block.named_parameters():
        parameter.requires_grad_(not any(inside(name, path) for path in held))

    def batches(share: Share) -> Batches:
        return InputSource(recorded.shown or recorded.files, share).batches

    found = BlockResult(twin.slim, 0.0, 0.0, False, (), 0.0)
    if recorded.files:
        seen = {"block": twin.slim, "calls": len(recorded.files)}
        try:
            before = _error(slim, dense, recorded, settings, seed)
            done = train_back(
                slim, dense, batches, seen, settings, seed, place / CHECKPOINTS, device, progress
            )
            after = _error(slim, dense, recorded, settings, seed)
        except NotImplementedError as error:
            raise PruningError(
                f"recovery by blocks: no gradient can be taken of {twin.slim!r} on this device ({error}); train on "
                "another, or set recover.enabled=false"
            ) from error
        losses = tuple(loss for _, loss in done.losses)
        found = BlockResult(twin.slim, before, after, after < before, losses, done.seconds)
    else:
        logger.warning("%s stays as it was cut: the dense model does not call it on what is shown", twin.slim)
    with write_errors("a trained block", place, "Trained blocks there are whole"):
        if found.kept:
            weights = {
                name: tensor.detach().to("cpu", types[name]).contiguous()
                for name, tensor in slim.block.state_dict().items()
            }
            with written_whole(place / WEIGHTS) as temporary:
                save_file(weights, temporary)
        write_json(place / RESULT, {**vars(found), "losses": list(found.losses)})
    remove(place / CHECKPOINTS)
    return found


@torch.no_grad()
def _error(slim: Called, dense: Called, recorded: Recorded, settings: Recover, seed: int) -> float:
    """Return the squared error of a block's output on held-out inputs, relative to the square of the dense block's."""
    device = next(slim.parameters()).device
    slim, dense = copy.deepcopy(slim).float().eval(), dense.to(device)
    inputs = InputSource(recorded.files, Share(settings, seed, device))
    error = power = 0.0
    for path in recorded.held_out or recorded.files:
        call = inputs.batch(path).call
        wanted = joined(dense(**call), 1).double()
        error += float((joined(slim(**call), 1).double() - wanted).square().sum())
        power += float(wanted.square().sum())
    return error / power if power > 0 else error


def _place(folder: Path, twin: Twin) -> Path:
    """Return where what belongs to a block lies meanwhile."""
    return folder / file_name(twin.slim)


def _told(progress: Progress | None, done: int, blocks: int, steps: int, now: RecoveryProgress) -> None:
    """Tell of a step, counted over all blocks."""
    if progress is not None:
        progress(replace(now, step=done * steps + now.step, steps=blocks * steps))
