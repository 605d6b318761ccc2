"""Training one block: its dense twin is the teacher, and inputs that were held out judge what came of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pruning.errors import PruningError
from pruning.files import read_json, remove, write_errors, write_json, written_whole
from pruning.models.outputs import joined
from pruning.models.widening import widened, widened_copy
from pruning.recovery.batches import Batches, Share
from pruning.recovery.block_inputs import InputSource, Recorded, recorded_call
from pruning.recovery.training import Progress, train_back
from pruning.settings import Recover
from pruning.types import lies_in

logger = logging.getLogger(__name__)

RESULT, WEIGHTS, CHECKPOINTS = "result.json", "weights.safetensors", "checkpoints"


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
    before: float = 0.0
    after: float = 0.0
    kept: bool = False
    losses: tuple[float, ...] = ()
    seconds: float = 0.0

    @classmethod
    def load(cls, folder: Path) -> BlockResult | None:
        """Return what `train_block` found out in a folder; None if it did not come to its end there."""
        done = read_json(folder / RESULT)
        return None if done is None else cls(**{**done, "losses": tuple(done["losses"])})


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
            args, kwargs = tree_map_only(Tensor, partial(widened, dtype=torch.float32), (args, kwargs))
        return self.block(*args, **kwargs)


def train_block(
    path: str,
    block: nn.Module,
    twin: nn.Module,
    recorded: Recorded,
    held: Collection[str],
    settings: Recover,
    folder: Path,
    seed: int,
    device: str | None,
    progress: Progress,
) -> BlockResult:
    """Train one block; its new weights, if they are better, lie in the folder then, in the block's types.

    Args:
        path: The block's in the slim model.
        block: The slim one; it is not changed.
        twin: A copy of the dense one.
        recorded: What enters the dense one.
        held: Modules of the block, by path in it, that stay as they are.
        settings: How to train.
        folder: Where its checkpoints are, and its weights and what was found out at the end.
        seed: Of every draw.
        device: As for `recover_blocks`.
        progress: Called after every step.
    """
    result = BlockResult(path)
    slim = Called(widened_copy(block, None).requires_grad_(True), halves=False)
    for name, parameter in slim.block.named_parameters():
        parameter.requires_grad_(not lies_in(name, held))
    if recorded.files:
        dense = Called(twin.requires_grad_(False), halves=True).eval()
        result = _trained(path, slim, dense, recorded, settings, folder, seed, device, progress)
    else:
        logger.warning("%s stays as it was cut: the dense model does not call it on what is shown", path)
    with write_errors("a trained block", folder, "Trained blocks there are whole"):
        if result.kept:
            types = {name: tensor.dtype for name, tensor in block.state_dict().items()}
            weights = {
                name: tensor.detach().to("cpu", types[name]).contiguous()
                for name, tensor in slim.block.state_dict().items()
            }
            with written_whole(folder / WEIGHTS) as temporary:
                save_file(weights, temporary)
        write_json(folder / RESULT, {**vars(result), "losses": list(result.losses)})
    remove(folder / CHECKPOINTS)
    return result


def _trained(
    path: str,
    slim: Called,
    dense: Called,
    recorded: Recorded,
    settings: Recover,
    folder: Path,
    seed: int,
    device: str | None,
    progress: Progress,
) -> BlockResult:
    """Train `slim` in place; a block that is not differentiable on the device is a PruningError."""

    def batches(share: Share) -> Batches:
        return InputSource(recorded.shown, share).batches

    seen = {"block": path, "calls": len(recorded.files)}
    try:
        before = _error(slim, dense, recorded.held_out)
        done = train_back(slim, dense, batches, seen, settings, seed, folder / CHECKPOINTS, device, progress)
        after = _error(slim, dense, recorded.held_out)
    except NotImplementedError as error:
        raise PruningError(
            f"recovery by blocks: no gradient can be taken of {path!r} on this device ({error}); train on another, or "
            "set recover.enabled=false"
        ) from error
    return BlockResult(
        path, before, after, after < before, tuple(loss for _, loss in done.losses), done.seconds
    )


@torch.no_grad()
def _error(slim: Called, dense: Called, files: Sequence[Path]) -> float:
    """Return the squared error of a block's output for recorded calls, relative to the square of the dense block's."""
    device = next(slim.parameters()).device
    slim, dense = copy.deepcopy(slim).float().eval(), dense.to(device)
    error = power = 0.0
    for path in files:
        call = recorded_call(path, device)
        wanted = joined(dense(**call), 1).double()
        error += float((joined(slim(**call), 1).double() - wanted).square().sum())
        power += float(wanted.square().sum())
    return error / power if power > 0 else error
