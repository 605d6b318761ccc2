"""What a tiny model is: a class, a config and a call; built with random weights, run on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from pruning.models.outputs import tensors_in as tensors_in
from pruning.models.outputs import with_tuple
from tests.models import randomise

BATCH = 2


@dataclass(frozen=True)
class Draw:
    """Draws the inputs of a call, for a batch of two; the same every time for one seed."""

    seed: int = 1
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal draws of exactly this shape; most begin with `BATCH`."""
        return torch.randn(*shape, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return int64 draws below `high`."""
        return torch.randint(high, shape, generator=self.generator)

    def times(self, high: float = 1000.0) -> Tensor:
        """Return a different time for each sample, shape (2,): 0.01 and 0.7 of `high`."""
        return torch.tensor([0.01, 0.7]) * high


@dataclass(frozen=True)
class Tiny:
    """A tiny random model.

    Attributes:
        cls: Name of its class in diffusers.
        config: Arguments of the class.
        call: Draws the keyword arguments of one call with a batch of two, ``return_dict`` left out.
    """

    cls: str
    config: Mapping[str, Any]
    call: Callable[[Draw], dict[str, Any]]


def build(tiny: Tiny, seed: int = 0) -> nn.Module:
    """Build a model with non-trivial values everywhere: zero gates and unit norms would hide mistakes."""
    model = getattr(diffusers, tiny.cls)(**tiny.config)
    return randomise(model, seed, gain=0.7)


@torch.no_grad()
def run(tiny: Tiny, model: nn.Module, seed: int = 1) -> Tensor:
    """Return all that the model puts out on fixed inputs, in one flat tensor."""
    output = model(**with_tuple(model, tiny.call(Draw(seed))))
    return torch.cat([part.flatten().float() for part in tensors_in(output)])
