"""Where models come from: bundled folders, paths, hub ids."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from pruning.errors import PruningError
from pruning.files import expanded

PREFIX = "bundled:"
_PACKAGE = Path(__file__).resolve().parent.parent
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?$")


DENOISER_FOLDERS = ("unet", "transformer")
"""Folders of a pipeline that hold its denoiser."""


def bundled_root() -> Path:
    """Return the folder of the bundled recipes: inside an installed wheel, else beside the package."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def bundled(name: str) -> Path:
    """Return the path of something bundled, such as ``models/digits-dit``, with or without ``bundled:`` in front.

    Raises:
        PruningError: If there is no such thing, listing what there is.
    """
    root = bundled_root()
    relative = name.removeprefix(PREFIX)
    path = (root / relative).resolve()
    if not relative or not path.is_relative_to(root.resolve()) or not path.exists():
        have = [*(p for p in root.glob("models/*") if p.is_dir()), *root.glob("*.txt")]
        names = sorted(f"{PREFIX}{p.relative_to(root).as_posix()}" for p in have)
        raise PruningError(f"nothing is bundled as {name!r}; bundled are: {', '.join(names) or 'nothing'}")
    return path


def resolve_source(source: str | Path) -> str:
    """Expand ``bundled:``, which must exist, and ``~``; a path or a hub id comes back as it is."""
    text = str(source)
    if not text.strip():
        raise PruningError("the model source is empty; give a folder, bundled:models/<name> or a hub id")
    if text.startswith(PREFIX):
        return str(bundled(text))
    return str(expanded(text)) if text.startswith("~") else text


def local_folder(source: str) -> Path | None:
    """Return `source` as an existing folder, or None if it is a hub id.

    Raises:
        PruningError: If it is a file, or can only be meant as a path and does not exist.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise PruningError(
            f"model source {source!r} is a file; give the folder that holds config.json or model_index.json"
        )
    if _HUB_ID.match(source) is None:
        raise PruningError(
            f"model source {source!r}: no such folder (looked at {path.absolute()}), and not a hub id either"
            f"{near_name(path)}"
        )
    return None


def near_name(path: Path) -> str:
    """Return a hint at what lies beside a path that does not exist and has nearly its name, or nothing.

    A link that leads nowhere is said to be one.
    """
    if path.is_symlink():
        return f" (it is a link to {str(path.readlink())!r}, which is not there)"
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f" (did you mean {str(path.with_name(near[0]))!r}?)" if near else ""
