"""Averages of other lengths, chosen when training is over ("post-hoc EMA", Karras et al., arXiv 2312.02696, section 3).

A power average of the weights, ``a_t = b_t a_(t-1) + (1 - b_t) w_t`` with ``b_t = (1 - 1/t)^(g + 1)``, gives step s of
t the weight ``(g + 1)/t (s/t)^g``: a peak at the end whose width is a share of the training, whatever its length. Its
standard deviation in units of t, ``sigma^2 = (g + 1) / ((g + 2)^2 (g + 3))``, is the *length*. Two of them are kept
while training, and stored at every evaluation. Any other is a sum of what was stored, with the coefficients whose
profile is nearest (algorithm 3 of the paper); they sum to one here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning.files import written_whole

TRACKED = (0.05, 0.10)
"""Lengths that are kept while training, as in the paper."""

BY_DECAY = "ema_decay"
"""Name of the average that `ema_decay` says, among the lengths."""


def exponent(length: float) -> float:
    """Return g of a length sigma in (0, 0.288): the positive root of ``(g + 1) = sigma^2 (g + 2)^2 (g + 3)``."""
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


EXPONENTS = tuple(exponent(length) for length in TRACKED)


def overlap(
    t: NDArray[np.float64], g: NDArray[np.float64], u: NDArray[np.float64], h: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the integral of the product of two profiles: of exponent g at step t, and of h at u."""
    least = np.minimum(t, u)
    return (g + 1) * (h + 1) / (g + h + 1) * (least / t) ** g * (least / u) ** h * least / (t * u)


def coefficients(steps: Sequence[int], length: float) -> NDArray[np.float64]:
    """Return what each stored average counts in that of a length at the last of the steps, (len(steps), 2)."""
    t = np.repeat(np.asarray(steps, dtype=np.float64), len(TRACKED))
    g = np.tile(EXPONENTS, len(steps))
    end, wanted = np.full_like(t, steps[-1]), np.full_like(g, exponent(length))
    normal = np.ones((len(t) + 1, len(t) + 1))
    normal[:-1, :-1], normal[-1, -1] = overlap(t[:, None], g[:, None], t, g), 0.0
    right = np.append(overlap(t, g, end, wanted), 1.0)
    found: NDArray[np.float64] = np.linalg.lstsq(normal, right, rcond=None)[0]  # type: ignore[assignment]
    return found[:-1].reshape(len(steps), len(TRACKED))


@dataclass
class Lengths:
    """The two power averages while training goes on, and those of earlier steps.

    Attributes:
        now: The averages by name, for each of `TRACKED`.
        folder: Where earlier ones lie; None: in memory.
        writes: Whether this process writes them.
    """

    now: tuple[dict[str, Tensor], ...]
    folder: Path | None
    writes: bool

    @classmethod
    def of(cls, trained: Mapping[str, nn.Parameter], folder: Path | None, *, writes: bool) -> Lengths:
        """Return averages of nothing yet."""
        zeros = tuple({name: torch.zeros_like(p.detach()) for name, p in trained.items()} for _ in TRACKED)
        return cls(zeros, folder, writes)

    def __post_init__(self) -> None:
        self._held: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, parameters: Iterable[Tensor], taken: int) -> None:
        """Take the weights after so many steps into the averages."""
        values = [parameter.detach() for parameter in parameters]
        for own, g in zip(self.now, EXPONENTS, strict=True):
            torch._foreach_lerp_(list(own.values()), values, 1 - (1 - 1 / taken) ** (g + 1))

    def store(self, taken: int) -> None:
        """Keep the averages of now, after so many steps."""
        if self.folder is None:
            self._held[taken] = {name: tensor.to("cpu", copy=True) for name, tensor in self.named().items()}
        elif self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path(self.folder, taken), flush=True) as temporary:
                save_file(
                    {name: tensor.cpu().contiguous() for name, tensor in self.named().items()}, temporary
                )

    def named(self) -> dict[str, Tensor]:
        """Return both averages by name: the length before that of the parameter."""
        return {f"{which}.{name}": value for which, own in enumerate(self.now) for name, value in own.items()}

    def combined(self, length: float, steps: Sequence[int]) -> dict[str, Tensor]:
        """Return the average of a length at the last of the steps at which averages were kept, on the CPU."""
        found = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in self.now[0].items()}
        for taken, row in zip(steps, coefficients(steps, length), strict=True):
            stored = self._stored(taken)
            for name, total in found.items():
                for which, factor in enumerate(row):
                    total.add_(stored[f"{which}.{name}"], alpha=float(factor))
        return {name: total.to(self.now[0][name].dtype) for name, total in found.items()}

    def _stored(self, taken: int) -> Mapping[str, Tensor]:
        if self.folder is None:
            return self._held[taken]
        return load_file(self._path(self.folder, taken))

    @staticmethod
    def _path(folder: Path, taken: int) -> Path:
        return folder / f"averages-{taken:08d}.safetensors"
