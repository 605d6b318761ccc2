"""Which weight files a folder holds, and why they could not be loaded; torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from huggingface_hub import list_repo_files

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SAFE = ".safetensors"

CONVERT = (
    "convert it once, where you trust it: load it with diffusers (transformers for a text encoder) and call "
    "save_pretrained(folder, safe_serialization=True)"
)

_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def variant_of(name: str) -> str | None:
    """Return the variant that the name of a weight file says: ``fp16`` of ``model.fp16.safetensors``, else None."""
    parts = _SHARD.sub("", name).split(".")
    return parts[1] if len(parts) == 3 else None


def only_pickled(names: Iterable[str]) -> str | None:
    """Return the first pickle among file names if no weights are there without one, else None."""
    found = sorted(names)
    pickles = [name for name in found if name.endswith(PICKLES)]
    return pickles[0] if pickles and not any(name.endswith(SAFE) for name in found) else None


def weights_fault(names: Iterable[str], variant: str | None) -> str | None:
    """Return what is wrong with the weights of a part of a model, by the names of its files, and what to do."""
    found = sorted(names)
    if pickle := only_pickled(found):
        return f"the weights are there only as a pickle ({pickle}), which is never read here; {CONVERT}"
    variants = {variant_of(name) for name in found if name.endswith(SAFE)}
    if variants and variant not in variants:
        have = ", ".join(sorted(v or "the plain one" for v in variants))
        ways = ", or ".join(
            sorted(f"set model.variant={v}" if v else "leave model.variant out" for v in variants)
        )
        asked = f"variant {variant!r}" if variant else "plain variant"
        return f"there are no weights of the {asked}, only of: {have}; {ways}"
    return None


def weight_names(source: str, folder: str | None, revision: str | None) -> list[str]:
    """Return the names of the files of one part, local or on the hub; none where the hub does not answer."""
    root = Path(source)
    if root.is_dir():
        place = root / folder if folder else root
        return [path.name for path in place.iterdir() if path.is_file()] if place.is_dir() else []
    try:
        files = list_repo_files(source, revision=revision)
    except Exception:  # this only helps to explain an error that is raised anyway
        return []
    return [PurePosixPath(f).name for f in files if PurePosixPath(f).parent.as_posix() == (folder or ".")]
