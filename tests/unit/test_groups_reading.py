"""What the source of a block says: toy blocks of every form, and those that are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning.groups.blocks import blocks_of
from pruning.removal import BlockRemoval, Handed
from pruning.surgery.identity import IdentityBlock


class _Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(4, elementwise_affine=False),
            nn.Linear(4, 8),
            nn.Linear(8, 4),
        )
        self.factor = 0.5

    def update(self, x):
        return self.down(torch.relu(self.up(self.norm(x))))


class Residual(_Base):
    def forward(self, x):
        residual = x
        x = self.update(x) + residual
        return x


class Scaled(_Base):
    def forward(self, x):
        return (x + self.update(x)) * self.factor


class Tupled(_Base):
    def forward(self, x):
        return (x + self.update(x),)


class Swapped(_Base):
    """Two streams, handed back in the other order."""

    def forward(self, x, text):
        both = torch.cat([text, x], dim=1)
        both = both + self.update(both)
        return both[:, : text.shape[1]], both[:, text.shape[1] :]


class Blended(_Base):
    """Each of two branches is the stream with zero weights, and so is any mixture of them."""

    def forward(self, x):
        alpha = torch.sigmoid(self.norm(x))
        return alpha * (x + self.update(x)) + (1.0 - alpha) * x


class Turned(_Base):
    """Permuted, reshaped, and back."""

    def forward(self, x):
        b, n, d = x.shape
        x = x.reshape(b, n, 2, d // 2).permute(0, 2, 1, 3).reshape(b, 2 * n, d // 2)
        x = x + self.update(x)
        x = x.reshape(b, 2, n, d // 2).permute(0, 2, 1, 3)
        return x.reshape(b, n, d)


class Optional(_Base):
    """An argument that the block adds itself, if there is one."""

    def forward(self, x, position=None):
        if position is not None:
            x = x + position
        return x + self.update(x)


class Overwritten(_Base):
    """The stream is the norm's output."""

    def forward(self, x):
        x = self.norm(x)
        return x + self.update(x)


class NotBack(_Base):
    """Permuted, and not back."""

    def forward(self, x):
        return (x + self.update(x)).transpose(0, 1)


class Skipping(_Base):
    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Linear(4, 4)

    def forward(self, x):
        return self.skip(x) + self.update(x)


class Around(nn.Module):
    """Calls its blocks one by one."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(), block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class AroundTwo(Around):
    def forward(self, x, text):
        for block in self.blocks:
            text, x = block(x, text=text)
        return x


class AroundPosition(Around):
    def forward(self, x, position):
        for block in self.blocks:
            x = block(x, position)
        return x


class Reading(Around):
    """Runs a part of its first block."""

    def forward(self, x):
        first = self.blocks[0]
        scale = first.up(x)
        for block in self.blocks:
            x = block(x)
        return x * scale.mean()


class Asking(Around):
    """Asks its first block for an object without weights, and all for a number."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__(block)
        self.blocks[0].norm.processor = str.lower

    def forward(self, x):
        name = self.blocks[0].norm.processor
        for block in self.blocks:
            x = block(x) * block.factor if name is not None else x
        return x


STREAM = BlockRemoval((Handed(("x",), (0,)),))


@pytest.mark.parametrize(
    ("block", "removal"),
    [
        (Residual, STREAM),
        (Scaled, BlockRemoval((Handed(("x",), (0,), 0.5),))),
        (Tupled, BlockRemoval((Handed(("x",), (0,)),), "tuple")),
        (Blended, STREAM),
        (Turned, STREAM),
    ],
)
def test_residual_block_hands_on_its_stream(block: type[nn.Module], removal: BlockRemoval) -> None:
    assert blocks_of(Around(block)).removals == {"blocks.0": removal, "blocks.1": removal}


def test_streams_are_handed_back_in_the_order_of_the_block() -> None:
    removal = blocks_of(AroundTwo(Swapped)).removals["blocks.1"]
    assert removal == BlockRemoval((Handed(("text",), (1,)), Handed(("x",), (0,))), "tuple")
    assert removal.main == 1
    x, text = torch.ones(1, 3, 4), torch.zeros(1, 2, 4)
    first, second = IdentityBlock(removal)(x, text=text)
    assert first is text
    assert second is x


def test_argument_that_the_block_adds_is_added_by_the_identity() -> None:
    removal = blocks_of(AroundPosition(Optional)).removals["blocks.0"]
    assert removal == BlockRemoval((Handed(("x", "position"), (0, 1)),))
    x, position = torch.ones(1, 3, 4), torch.full((1, 3, 4), 2.0)
    assert torch.equal(IdentityBlock(removal)(x, position=position), x + position)
    assert torch.equal(IdentityBlock(removal)(x), x)


@pytest.mark.parametrize("block", [Overwritten, NotBack, Skipping])
def test_other_blocks_are_none_and_say_so(block: type[nn.Module]) -> None:
    found = blocks_of(Around(block))
    assert not found.removals
    assert "plus an update" in found.why_not["blocks.0"]


def test_block_that_is_run_in_parts_from_outside_is_none() -> None:
    found = blocks_of(Reading(Residual))
    assert list(found.removals) == ["blocks.1"]
    assert found.why_not["blocks.0"] == "Reading reads 'up' of blocks.0"


def test_identity_shows_what_is_asked_for_from_outside() -> None:
    assert blocks_of(Asking(Residual)).removals["blocks.0"].shown == ("norm", "norm.processor")


def test_module_without_a_hidden_layer_is_no_block() -> None:
    class Modulation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x * (1 + self.linear(x))

    found = blocks_of(Around(Modulation))
    assert not found.removals
    assert not found.why_not


def test_first_channels_are_handed_back_of_what_was_concatenated() -> None:
    removal = BlockRemoval((Handed(("x",), (0,)),), channels=2)
    x = torch.randn(1, 5, 3, 3)
    assert torch.equal(IdentityBlock(removal)(x), x[:, :2])


def test_mask_and_update_beside_the_stream() -> None:
    stream = Handed(("x",), (0,), masks=(("mask", 1),))
    removal = BlockRemoval((Handed(("x",), (0,), 0.0), stream), "tuple")
    x, mask = torch.ones(1, 3, 4), torch.tensor([[1.0, 1.0, 0.0]])
    update, kept = IdentityBlock(removal)(x, mask)
    assert torch.equal(update, torch.zeros(1, 3, 4))
    assert kept.sum() == 8
