"""Block-wise distillation: each cut block learns to put out what its dense twin does on the same input.

Nothing larger than a block is trained, so that a model which does not fit into memory can be recovered: the dense model
runs (from disk, if it must), what enters its blocks is kept on disk, and then one block after the other is trained by
the loop that trains whole models, with its twin as teacher. Errors that add up over the blocks are not seen, for the
inputs are the dense model's (as in layer-by-layer distillation: ZeroQuant, arXiv 2206.01861). A block that does not get
better on inputs that were held out stays as it was cut.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from pruning.calibration.rounds import split
from pruning.data import NoisedBatches
from pruning.errors import PruningError
from pruning.files import check_writable, file_name, read_json, remove, write_errors, write_json
from pruning.models.widening import widened_copy
from pruning.on_demand import OnDemand, stored_at
from pruning.recovery.block_inputs import input_bytes, record
from pruning.recovery.block_training import WEIGHTS, BlockResult, train_block
from pruning.recovery.checkpoints import fingerprint
from pruning.recovery.loop import RecoveryProgress
from pruning.recovery.training import Progress
from pruning.recovery.twins import Twin, served_elsewhere
from pruning.settings import Recover
from pruning.store import changes_in_words

DISK = 0.25
"""Share of the free disk that inputs of blocks may take at a time; more blocks take more runs of the dense model."""

IDENTITY, INPUTS = "recovery.json", "inputs"


@dataclass(frozen=True)
class BlocksResult:
    """What block-wise recovery did.

    Attributes:
        blocks: By block, in the model's order.
        changed: New weights of the slim model by name, read from disk when they are asked for.
    """

    blocks: tuple[BlockResult, ...]
    changed: Mapping[str, Tensor]


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
    check_by_blocks(settings)
    if not blocks:
        raise PruningError(
            "recovery by blocks: no block of the model lost anything, so that none can be trained"
        )
    folder = Path(folder)
    check_writable("recovery by blocks", folder, 0)
    settings = replace(
        settings, distill_weight=1.0, feature_weight=0.0, loss_weighting="uniform", label_dropout=0.0
    )
    settings.check("recovery")
    if identity is None:
        seen = {"blocks": [vars(twin) for twin in blocks], "shown": source.digest(), "rows": source.rows}
        identity = fingerprint(settings, seed, student, teacher, seen)
    _claim(folder, identity)
    if settings.max_seconds is not None:
        settings = replace(settings, max_seconds=settings.max_seconds / len(blocks))
    places = {twin: folder / file_name(twin.slim) for twin in blocks}
    results = {twin: done for twin in blocks if (done := BlockResult.load(places[twin])) is not None}
    left = [twin for twin in blocks if twin not in results]
    served = served_elsewhere(student, left)
    sizes = input_bytes(teacher, left, source) if left else {}
    for some in split(left, sizes.__getitem__, DISK * shutil.disk_usage(folder).free):
        inputs = {twin: places[twin] / INPUTS for twin in some}
        with write_errors("inputs of blocks", folder, "Trained blocks there are whole"):
            recordings = record(teacher, inputs, source)
        for twin in some:
            results[twin] = train_block(
                twin.slim,
                student.get_submodule(twin.slim),
                widened_copy(teacher.get_submodule(twin.dense), getattr(teacher, "dtype", None)),
                recordings[twin],
                served[twin] | recordings[twin].read_elsewhere,
                settings,
                places[twin],
                seed,
                device,
                partial(_told, progress, len(results), len(blocks), settings.steps),
            )
            remove(inputs[twin])
    kept = {twin.slim: places[twin] / WEIGHTS for twin in blocks if results[twin].kept}
    return BlocksResult(tuple(results[twin] for twin in blocks), _in_files(kept))


def check_by_blocks(settings: Recover) -> None:
    """Raise PruningError for settings that only a model trained as a whole can follow."""
    for key in ("eval_every", "gradient_checkpointing", "tracker"):
        if value := getattr(settings, key):
            raise PruningError(
                f"recovery by blocks: {key}: {value} is of a model that is trained as a whole; each block is judged by "
                "inputs of its own that are held out. Leave it out, or set recover.method=whole"
            )


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write down what the folder is of; what is there of another recovery is a PruningError."""
    known = read_json(folder / IDENTITY, "delete the folder")
    if known is not None and (words := changes_in_words(known, identity)):
        raise PruningError(
            f"recovery by blocks: {folder} holds another one ({words}); name another folder, or delete it"
        )
    write_json(folder / IDENTITY, identity)


def _in_files(files: Mapping[str, Path]) -> Mapping[str, Tensor]:
    """Return weights by name in the model, of files by path of the block; they are read when they are asked for."""
    places: dict[str, tuple[Path, str]] = {}
    for block, path in files.items():
        with safe_open(path, "pt") as file:
            places |= {f"{block}.{name}": (path, name) for name in file.keys()}  # noqa: SIM118
    return OnDemand(places, stored_at)


def _told(progress: Progress | None, done: int, blocks: int, steps: int, now: RecoveryProgress) -> None:
    """Tell of a step, counted over all blocks."""
    if progress is not None:
        progress(replace(now, step=done * steps + now.step, steps=blocks * steps))
