"""Write docs/models.md: what can be removed from every denoiser class of diffusers, and why not the rest.

Usage: python -m scripts.models_table
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import diffusers
import torch
from torch import nn

from pruning.groups import KINDS, discover
from pruning.groups.attention import why_no_heads
from pruning.groups.blocks import blocks_of
from pruning.groups.modulation import modulation_layers, repeated
from pruning.models.native import WITHOUT
from pruning.types import PrunableGroup, inside
from tests.zoo import NOT_DENOISERS, ZOO, Tiny

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"

COLUMNS = {
    "attention_heads": "heads",
    "ffn_channels": "FFN channels",
    "resnet_channels": "ResNet channels",
    "blocks": "blocks",
}

MODULATION, EMBEDDERS = "modulation layers", "repeated embedders"
"""Weights that may take a smaller form."""

HEAD = """# Which models, and what can be removed from them

Written by `python -m scripts.models_table`; a test holds it to the code. There is a row for every denoiser class of
diffusers {version}. **yes**: all modules of this kind are groups. **partly**: some are not, and the note says why.
**no**: none is. **–**: the class has none. Each cell stands for tests on tiny random models of the class ({count}
models of {classes} classes, `tests/zoo/`): what is cut computes what the masked model computes, a removed block is the
block with all its weights at zero, what is saved is what is loaded, and predicted costs are those of the cut model.
Modulation layers may take a low-rank form (`prune.modulation_error`), repeated embedders become one where their
weights are equal (`prune.share_embedders`); a class without such layers has tables of scales and shifts, or none. The
last column says whether `sinkprune plan` counts MACs from the config alone, on the input of the class's own pipeline.

"""

FOOT = """
Of the parameters of the blocks, modulation left out, less than a tenth is in no group of heads or channels; the
exceptions are in `tests/family/test_zoo_complete.py`, with their reasons.

These classes of `diffusers.models` are no denoisers: {not_denoisers}.

A class of a newer diffusers needs no entry here: kinds of modules are recognised by what their parts are called and how
wide they are, and blocks by what their `forward` computes (see [how it works](how-it-works.md)).
`sinkprune run RECIPE --dry-run` and `find_groups(model)` say what was found.
"""


def on_meta(tiny: Tiny) -> nn.Module:
    """Build a tiny model without its weights."""
    with torch.device("meta"):
        return getattr(diffusers, tiny.cls)(**tiny.config)


def reasons(model: nn.Module, groups: list[PrunableGroup]) -> dict[str, set[str]]:
    """Return why modules of a kind are no groups, by kind."""
    found: dict[str, set[str]] = defaultdict(set)
    kept = [group.module for group in groups if group.kind == "attention_heads"]
    for path, module in model.named_modules():
        why = why_no_heads(path, module, model)
        if why and path not in kept and not why.startswith("its heads are those of"):
            found["attention_heads"].add(why)
    blocks = blocks_of(model)
    units = [group.module for group in groups if group.kind != "blocks"]
    for path, why in blocks.why_not.items():
        listed = path.rpartition(".")[2].isdigit() and any(inside(unit, path) for unit in units)
        covered = any(inside(path, block) or inside(block, path) for block in blocks.removals)
        if listed and not covered:
            found["blocks"].add(why)
    return found


def marks(why: list[str], notes: list[str]) -> str:
    """Return the numbers of the notes that say why; a new one is put at the end of `notes`."""
    notes += [note for note in why if note not in notes]
    return ", ".join(str(notes.index(note) + 1) for note in why)


def cell(found: bool, why: list[str], notes: list[str]) -> str:
    """Return what a class has of a kind: some is found, some is not and why."""
    if not why:
        return "yes" if found else "–"
    return f"{'partly' if found else 'no'} ({marks(why, notes)})"


def table() -> str:
    """Return the page."""
    kinds: dict[str, set[str]] = defaultdict(set)
    whys: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for tiny in ZOO.values():
        model = on_meta(tiny)
        groups = list(discover(model))
        kinds[tiny.cls] |= {group.kind for group in groups}
        kinds[tiny.cls] |= {MODULATION} if modulation_layers(model, groups) else set()
        kinds[tiny.cls] |= {EMBEDDERS} if repeated(model, groups) else set()
        for kind, why in reasons(model, groups).items():
            whys[tiny.cls][kind] |= why
    columns = [*COLUMNS, *sorted({*KINDS} - {*COLUMNS}), MODULATION, EMBEDDERS]
    notes: list[str] = []
    rows = []
    for cls in sorted(kinds):
        cells = [cell(kind in kinds[cls], sorted(whys[cls][kind]), notes) for kind in columns]
        cells.append(f"no ({marks([WITHOUT[cls]], notes)})" if cls in WITHOUT else "yes")
        rows.append(f"| {cls} | {' | '.join(cells)} |")
    names = [*(COLUMNS.get(kind, kind) for kind in columns), "MACs"]
    lines = [f"| class | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows]
    told = "; ".join(f"{name} ({why})" for name, why in sorted(NOT_DENOISERS.items()))
    head = HEAD.format(version=diffusers.__version__, count=len(ZOO), classes=len(kinds))
    listed = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return f"{head}" + "\n".join(lines) + f"\n\n## Why not\n\n{listed}\n" + FOOT.format(not_denoisers=told)


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
    print(PAGE)
