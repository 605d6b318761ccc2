"""Several processes of one ``accelerate launch``: the first works and writes, the others wait for its word."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pruning.errors import PruningError
from pruning.files import read_json, write_json

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MEETING_SECONDS = 120.0
"""How long the processes of a launch wait for each other at the start."""
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher of torch sets."""


class Ranks:
    """The processes that run the same recipe together.

    The others may wait for hours, longer than a collective operation may take; so they watch for a small file,
    whose name only this launch knows.

    Args:
        folder: The run directory.
        cpu: The processes compute on the CPU; accelerate has to be told.

    Attributes:
        count: How many processes there are.
        number: Which of them this is, from 0.
        device: The device that the launcher gave this process; None where there is but one process.
    """

    def __init__(self, folder: Path, *, cpu: bool = False) -> None:
        self._folder = folder
        self.count = _world_size()
        self.number = 0
        self.device: torch.device | None = None
        self._launch = ""
        if self.count > 1:
            self._join(cpu)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    def tell(self, stage: str, folder: Path | None) -> None:
        """Tell the others, as the first process, in which folder to work on `stage`; None: there is no work."""
        self.say(stage, {"folder": None if folder is None else str(folder.absolute())})

    def wait(self, stage: str) -> Path | None:
        """Wait for the first process to come to `stage`; return the folder to work in, None if there is no work."""
        folder = self.hear(stage)["folder"]
        return None if folder is None else Path(folder)

    def say(self, topic: str, word: Mapping[str, Any]) -> None:
        """Tell the others, as the first process, something (JSON types) of a topic; once in a launch."""
        if self.count > 1:
            place = self._word(topic)
            place.parent.mkdir(parents=True, exist_ok=True)
            for old in place.parent.glob(f"{topic}-*.json"):  # of earlier launches; ours may still be read
                old.unlink()
            write_json(place, word)

    def hear(self, topic: str) -> dict[str, Any]:
        """Wait for what the first process says of a topic."""
        while (word := read_json(self._word(topic))) is None:
            time.sleep(POLL_SECONDS)
        return word

    def share(self, numbers: Sequence[int]) -> Sequence[int]:
        """Return which of `numbers` are this process's: every process takes as many, in turn."""
        return numbers[self.number :: self.count]

    def _word(self, topic: str) -> Path:
        return self._folder / ".launch" / f"{topic}-{self._launch}.json"

    def _join(self, cpu: bool) -> None:
        """Meet the other processes and agree on a name for this launch.

        Raises:
            PruningError: If the variables of a launcher are there without a launch, or the others do not come.
        """
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        _check_launch()
        met: list[Any] = []

        def meet() -> None:
            try:
                state = PartialState(cpu=cpu)
                name = broadcast_object_list([uuid.uuid4().hex], from_process=0)[0]
                met.append((state.process_index, state.device, name))
            except Exception as error:  # raised where it can be seen
                met.append(error)

        logger.info("waiting for the other %d of %d processes (WORLD_SIZE) …", self.count - 1, self.count)
        thread = threading.Thread(target=meet, daemon=True)  # so that Ctrl-C is heard while it waits
        thread.start()
        began = time.monotonic()
        while thread.is_alive() and time.monotonic() - began < MEETING_SECONDS:
            thread.join(POLL_SECONDS)
        if not met or isinstance(met[0], Exception):
            why = f"cannot be met ({met[0]})" if met else f"did not come within {MEETING_SECONDS:g} s"
            raise PruningError(
                f"the environment says that {self.count} processes run together (WORLD_SIZE), but the others {why}; "
                f"{_WAY_OUT}"
            ) from (met[0] if met else None)
        self.number, device, self._launch = met[0]
        # All processes share the CPU. By another name weights would be copied to it, out of their files, and where a
        # weight begins in memory can decide how a product is rounded.
        self.device = torch.device("cpu") if device.type == "cpu" else device
        if device.type == "cuda":
            torch.cuda.set_device(self.device)  # what was set in the other thread holds there


_WAY_OUT = "start with `accelerate launch -m pruning …`, or unset WORLD_SIZE and RANK to run alone"


def _check_launch() -> None:
    """Raise PruningError if some of the variables that a launcher sets are missing: they were left in the shell."""
    missing = [name for name in LAUNCHER if not os.environ.get(name)]
    if missing:
        there = ", ".join(f"{name}={os.environ[name]}" for name in LAUNCHER if os.environ.get(name))
        raise PruningError(
            f"{there} is set, but {', '.join(missing)} is not, so this is no launch; {_WAY_OUT}"
        )


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise PruningError(f"WORLD_SIZE={text!r} in the environment is no number of processes; {_WAY_OUT}")
    return int(text)
