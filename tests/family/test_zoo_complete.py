"""Little of a block is in no group: what has units of its own is found, the rest is as wide as the residual stream.

Counted apart is what says to a block how it is modulated: layers in norms, tables and embedders.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import diffusers
import pytest
import torch
from torch import Tensor, nn

from pruning.groups import discover
from pruning.groups.words import is_norm, words
from pruning.models import load_meta_denoiser
from pruning.types import PrunableGroup, inside, slices_of
from tests.family.zoo_setup import FIRST
from tests.shared import SHARED
from tests.zoo import ZOO, Tiny

MODULATES = {"adaln", "embed", "embedder", "embeds", "film", "mod", "modulation", "scale", "shift"}
"""Words of what says to a block how it is modulated."""

LARGEST = 0.1
"""Share of the blocks' parameters that may be in no group."""

STREAM = (
    "so small, what projects the stream at its own width weighs more; it is less than a tenth as published"
)
WITHOUT_HEADS = "its heads are no units; see docs/models.md"
EXCEPTIONS = {
    "RFD4ProteinaTransformer": (0.30, WITHOUT_HEADS),
    "SanaWMTransformer3DModel": (0.82, WITHOUT_HEADS),
    "SanaVideoTransformer3DModel": (0.19, "a convolution over time works at the width of the stream"),
    "deepfloyd": (0.13, WITHOUT_HEADS),
    "kandinsky21": (0.12, WITHOUT_HEADS),
    "kandinsky22": (0.12, WITHOUT_HEADS),
    "ddpm_cat_256": (0.102, "its attention has a single head, and its up path shortcuts"),
    "dreamlite": (0.17, STREAM),
    "kandinsky3": (0.12, STREAM),
    "stable-cascade": (0.11, STREAM),
}
"""Entries and classes with more than that in no group: how much, and why."""

CONFIGS = sorted(path.stem for path in (SHARED / "configs").glob("*.json"))


def in_no_group(model: nn.Module) -> float:
    """Return the share of the parameters of a model's blocks, modulation left out, that no unit owns."""
    groups = list(discover(model))
    owned = owned_by(model, groups)
    blocks = {*blocks_in(model, groups)}
    assert blocks
    counted = {
        path: parameter.numel()
        for path, parameter in model.named_parameters()
        if not blocks.isdisjoint(around(path)) and not modulates(model, path)
    }
    return 1 - sum(owned[path] for path in counted) / sum(counted.values())


def owned_by(model: nn.Module, groups: list[PrunableGroup]) -> dict[str, int]:
    """Return how many numbers of each parameter some unit owns."""
    parameters = dict(model.named_parameters())
    along: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    for group in groups:
        for part in slices_of(group):
            size = parameters[part.path].shape[part.dim]
            rows = along[part.path].setdefault(part.dim, torch.zeros(size, dtype=torch.bool))
            rows[part.offset : part.offset + group.num_units * part.unit_size] = True
    free = {
        path: math.prod(1 - float(rows.double().mean()) for rows in dims.values())
        for path, dims in along.items()
    }
    return {path: round(p.numel() * (1 - free.get(path, 1.0))) for path, p in parameters.items()}


def blocks_in(model: nn.Module, groups: list[PrunableGroup]) -> list[str]:
    """Return the blocks of a model: those that can go, but for whole stages, and other items of lists with units."""
    holders = {above for group in groups if group.kind != "blocks" for above in around(group.module)}
    going = [group.module for group in groups if group.kind == "blocks" and len(group.paths) == 1]
    going = list(outermost(path for path in going if is_item(model, path)))
    others = (
        path
        for path in holders
        if is_item(model, path) and not any(inside(path, block) or inside(block, path) for block in going)
    )
    return [*going, *outermost(others)]


def around(path: str) -> list[str]:
    """Return a path and the paths of all modules around it, the model left out."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def is_item(model: nn.Module, path: str) -> bool:
    """Tell whether a module is an item of a list."""
    return isinstance(model.get_submodule(path.rpartition(".")[0]), nn.ModuleList)


def outermost(paths: Iterator[str]) -> Iterator[str]:
    """Yield the paths that lie in no other; a path comes after those it lies in."""
    last = None
    for path in sorted(paths, key=lambda path: path.split(".")):
        if last is None or not inside(path, last):
            last = path
            yield path


def modulates(model: nn.Module, path: str) -> bool:
    """Tell whether a parameter is one of what says to a block how it is modulated, or of a norm."""
    return bool(words(path) & MODULATES) or any(
        is_norm(model.get_submodule(above)) for above in around(path)[:-1]
    )


def built(tiny: Tiny, *, published: bool) -> nn.Module:
    """Build a model without weights, at its own size or, by the defaults of its class, as it was published."""
    with torch.device("meta"):
        return getattr(diffusers, tiny.cls)(**({} if published else tiny.config))


def check(model: nn.Module, *names: str) -> None:
    """Assert that no more is in no group than an exception allows, and that an exception is one."""
    share = in_no_group(model)
    excused = [EXCEPTIONS[name] for name in names if name in EXCEPTIONS]
    for most, _ in excused:
        assert LARGEST < share <= most
    if not excused:
        assert share <= LARGEST


@pytest.mark.parametrize("name", CONFIGS)
def test_public_models(name: str) -> None:
    check(load_meta_denoiser(SHARED / "configs" / f"{name}.json"), name)


@pytest.mark.parametrize("name", FIRST)
def test_classes_as_published(name: str) -> None:
    try:
        model = built(ZOO[name], published=True)
    except (TypeError, ValueError) as error:
        pytest.skip(f"the defaults of {ZOO[name].cls} are no model: {error}")
    check(model, ZOO[name].cls)


@pytest.mark.parametrize("name", ZOO)
def test_tiny_models(name: str) -> None:
    check(built(ZOO[name], published=False), name, ZOO[name].cls)
