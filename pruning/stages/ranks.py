"""Several processes of one ``accelerate launch``: the first works and writes, the others wait for its word."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import torch

from pruning.files import read_json, write_json

POLL_SECONDS = 0.5


class Ranks:
    """The processes that run the same recipe together.

    The others may wait for hours, longer than a collective operation may take; so they watch for a small file,
    whose name only this launch knows.

    Args:
        folder: The run directory.
        cpu: The processes compute on the CPU; accelerate has to be told.

    Attributes:
        count: How many processes there are.
        is_first: Whether this is the one that writes.
        device: The device that the launcher gave this process; None where there is but one process.
    """

    def __init__(self, folder: Path, *, cpu: bool = False) -> None:
        self._folder = folder
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.is_first = True
        self.device: torch.device | None = None
        self._launch = ""
        if self.count > 1:
            self._join(cpu)

    def tell(self, stage: str, *, go: bool) -> None:
        """Tell the others, as the first process, whether `stage` is to be worked on."""
        if self.count > 1:
            word = self._word(stage)
            word.parent.mkdir(parents=True, exist_ok=True)
            for old in word.parent.glob(f".{stage}-*.json"):  # of earlier launches; ours may still be read
                old.unlink()
            write_json(word, {"go": go})

    def wait(self, stage: str) -> bool:
        """Wait for the first process to come to `stage`; return whether there is work."""
        while (word := read_json(self._word(stage))) is None:
            time.sleep(POLL_SECONDS)
        return bool(word["go"])

    def _word(self, stage: str) -> Path:
        return self._folder / ".partial" / f".{stage}-{self._launch}.json"

    def _join(self, cpu: bool) -> None:
        """Agree on a name for this launch."""
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        state = PartialState(cpu=cpu)
        self.is_first = state.is_main_process
        self.device = state.device
        self._launch = broadcast_object_list([uuid.uuid4().hex], from_process=0)[0]
