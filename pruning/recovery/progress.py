"""What a recovery run tells about itself while it runs, and a bar that shows it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm


@dataclass(frozen=True)
class RecoveryProgress:
    """One optimiser step that has just been taken.

    Attributes:
        step: Steps taken so far, from 1.
        steps: Steps asked for.
        loss: Loss of this step, the mean over its samples.
        learning_rate: Learning rate of this step.
        images_per_second: Images trained on a second since this process started or resumed.
        resumed_from: The step of the checkpoint from which this process resumed; 0 for a fresh start.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    resumed_from: int


class ProgressBar:
    """A tqdm bar with loss and images/s, to be passed as `progress` to `recover`.

    It draws nothing where its stream is not a terminal. The loss shown is a running mean over about 20 steps.

    Args:
        stream: Where to draw.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bar: tqdm | None = None
        self._loss = 0.0

    def __call__(self, info: RecoveryProgress) -> None:
        """Draw one step; the bar closes itself after the last."""
        if self._bar is None:
            self._bar = tqdm(
                total=info.steps,
                initial=info.step - 1,
                desc="recover",
                unit="step",
                file=self._stream,
                disable=None,
            )
            self._loss = info.loss
        self._loss += 0.05 * (info.loss - self._loss)
        shown = f"loss {self._loss:.4f}, {info.images_per_second:.0f} images/s"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(info.step - self._bar.n)
        if info.step >= info.steps:
            self.close()

    def close(self) -> None:
        """Close the bar, leaving its last line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
