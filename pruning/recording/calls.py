"""Recorded calls, opened again: rows with their arguments on disk, and which of them can share a call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.data.batches import move
from pruning.errors import PruningError
from pruning.files import expanded
from pruning.recording.axes import form_of, joined
from pruning.recording.checking import check
from pruning.recording.format import ADVICE, HEAD, Head, Row, read_parts
from pruning.recording.tensors import TensorFiles
from pruning.recording.trees import decoded, longer_types

NOT_NOISED = (
    "its latents cannot be noised anew: with the right answers in its denoiser's place it does not end at what they "
    "point to, or its scheduler does not say how it adds noise; use the recorded points"
)


class RecordedCalls:
    """What `record` wrote: rows and their tensors, read from disk when they are asked for.

    Attributes:
        folder: Where it lies.
        head: What was recorded, and what was learned of the pipeline.
        rows: All rows, by sample and then by step.
        x0: Keys of each sample's end, by slot, in the scheduler's layout; empty where it was not kept.
    """

    def __init__(
        self,
        folder: Path,
        head: Head,
        rows: Sequence[Row],
        x0: Mapping[int, Sequence[str]],
        files: TensorFiles,
    ) -> None:
        self.folder, self.head, self.rows, self.x0 = folder, head, rows, x0
        self._files = files

    @classmethod
    def open(cls, folder: str | Path, *, whole: bool = True) -> RecordedCalls:
        """Open a recording; nothing in it is trusted.

        Args:
            folder: Where it lies.
            whole: Refuse one that is not finished; else what there is of it is opened.

        Raises:
            PruningError: If there is none, it is not finished, or it was changed.
        """
        folder = expanded(folder)
        head = Head.read(folder)
        if head is None:
            raise PruningError(f"{folder}: no recording is there ({HEAD} is missing)")
        parts = read_parts(folder)
        found = sum(len(part.x0) for part in parts)
        if found > head.samples:
            raise PruningError(
                f"{folder}: {found} samples are there, and {head.samples} are described; {ADVICE}"
            )
        if whole and found < head.samples:
            raise PruningError(
                f"{folder}: the recording is not finished: {found} of {head.samples} samples are there; record again "
                "with the same arguments to go on"
            )
        rows = [row for part in parts for row in part.rows]
        x0 = {sample: keys for part in parts for sample, keys in part.x0.items()}
        calls = cls(folder, head, rows, x0, TensorFiles({part.tensors: part.keys for part in parts}))
        check(calls)
        return calls

    @property
    def samples(self) -> int:
        """How many samples a finished recording holds."""
        return self.head.samples

    @property
    def recorded(self) -> int:
        """How many samples are there."""
        return len(self.x0)

    @property
    def steps(self) -> int:
        """Sampling steps of each sample's run."""
        return self.head.steps

    @property
    def denoisers(self) -> dict[str, str]:
        """Class of each recorded component, by name."""
        return {name: denoiser.kind for name, denoiser in self.head.denoisers.items()}

    def of(self, denoiser: str) -> list[Row]:
        """Return the rows of one component; one that was not recorded is a PruningError."""
        if denoiser not in self.head.denoisers:
            have = ", ".join(f"{name} ({kind})" for name, kind in self.denoisers.items())
            raise PruningError(f"{self.folder}: {denoiser!r} was not recorded; recorded are {have}")
        return [row for row in self.rows if row.denoiser == denoiser]

    def arguments(self, row: Row) -> dict[str, Any]:
        """Return the arguments of a row, on the CPU, as they were recorded."""
        return decoded(row.tree, self._files.read)

    def outline(self, key: str) -> Tensor:
        """Return a tensor of the recording without its values, on the meta device."""
        return self._files.outline(key)

    def call(
        self,
        rows: Sequence[Row],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        arguments: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Return one call of several rows that share a signature.

        Args:
            rows: At least one.
            device: Where the tensors go.
            dtype: Type of floating point tensors of two or more dimensions, but of those that the pipeline gave in a
                longer type than the model's (positions); what has fewer are times and other numbers, which keep theirs.
                None leaves all as they were recorded.
            arguments: In the place of the recorded ones, a tree for each row.

        Raises:
            PruningError: If they cannot share a call.
        """
        whole = self.joined(rows, arguments)
        return move(whole, device, dtype, longer_types(whole))

    def joined(
        self, rows: Sequence[Row], arguments: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return one call of several rows, on the CPU and in the types that were recorded; see `call`."""
        if len({self.signature(row) for row in rows}) != 1:
            raise PruningError(
                f"{rows[0].name} and {rows[-1].name} cannot share a call: shapes or shared arguments differ"
            )
        if len(rows) > 1 and self.head.denoisers[rows[0].denoiser].alone:
            raise PruningError(f"{rows[0].denoiser!r} takes one row a call")
        trees = list(arguments) if arguments is not None else [self.arguments(row) for row in rows]
        return joined(trees, self.head.denoisers[rows[0].denoiser].inputs)

    def signature(self, row: Row) -> str:
        """Return what rows must have in common to share a call: shapes along other axes, and all that is shared."""
        denoiser = self.head.denoisers[row.denoiser]
        key = (row.sample, row.step, row.call, row.branch) if denoiser.alone else 0
        if id(row) not in self._signatures:
            form = [row.denoiser, key, form_of(row.tree, denoiser.inputs)]
            text = json.dumps(form, sort_keys=True)
            self._signatures[id(row)] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._signatures[id(row)]

    @cached_property
    def _signatures(self) -> dict[int, str]:
        return {}

    def end(self, row: Row, slot: int) -> Tensor:
        """Return x0, the end of a row's sample, float32 in the scheduler's layout, batch of 1."""
        keys = self.x0.get(row.sample, ())
        if slot >= len(keys):
            raise PruningError(
                f"{self.folder}: the end of sample {row.sample} was not kept: it was recorded for images"
            )
        return self._files.read(keys[slot]).float()

    def example(self, denoiser: str, batch_size: int, **where: Any) -> dict[str, Any]:
        """Return a call of the first step with `batch_size` rows, for costs and latency; `where` as for `call`."""
        first = self.of(denoiser)[0]
        if self.head.denoisers[denoiser].alone and batch_size > 1:
            raise PruningError(f"{denoiser!r} takes one sample a call; ask for a batch of 1")
        return self.call([first] * batch_size, **where)
