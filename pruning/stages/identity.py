"""Whose run is it? The model and the data that a run directory belongs to, by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.models import resolve_source
from pruning.recipe import Recipe
from pruning.store import file_hash

DENOISER_FOLDERS = ("unet", "transformer", "scheduler")


def model_identity(recipe: Recipe, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return source and hash of the dense model.

    A local model is known by the content of its denoiser's files, wherever it lies; one on the hub by its id,
    revision, variant and subfolder.

    Args:
        recipe: Names the model.
        known: What was returned before for this run; files of the same size and time are not read again.
    """
    section = recipe.model
    folder = Path(resolve_source(section.source))
    files: dict[str, dict[str, Any]] = {}
    if folder.is_dir():
        inner = (section.subfolder, "scheduler") if section.subfolder else DENOISER_FOLDERS
        places = [folder / name for name in inner if name and (folder / name).is_dir()] or [folder]
        before = known.get("files") if known.get("source") == section.source else None
        before = before if isinstance(before, Mapping) else {}
        for path in sorted(p for place in places for p in place.iterdir() if p.is_file()):
            name, status = path.relative_to(folder).as_posix(), path.stat()
            entry = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            was = before.get(name)
            was = was if isinstance(was, Mapping) else {}
            same = "sha256" in was and {key: was.get(key) for key in entry} == entry
            files[name] = {**entry, "sha256": was["sha256"] if same else file_hash(path)}
        what: Any = {name: entry["sha256"] for name, entry in files.items()}
        what |= {"variant": section.variant} if section.variant else {}
    else:
        what = [section.source, section.revision, section.variant, section.subfolder]
    return {"source": section.source, "hash": _hash(what), "files": files}


def data_identity(recipe: Recipe, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return source, content and hash of the data.

    The content is known by names and sizes of local files, else by the name of the data set. The hash, by which stages
    know the data, is that of the content when the run began: it stays when a row that could not be read was mended.

    Args:
        recipe: Names the data.
        known: What was returned before for this run; `broken` if a row could not be read.
    """
    source = recipe.data.source
    path = Path(source).expanduser()
    what: Any = source
    if path.is_file():
        what = [path.name, path.stat().st_size]
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        what = [[p.relative_to(path).as_posix(), p.stat().st_size] for p in files]
    content = _hash(what)
    mended = known.get("broken") is True and known.get("source") == source
    same = "hash" in known and (mended or known.get("content") == content)
    return {"source": source, "content": content, "hash": known["hash"] if same else content}


def difference(kind: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return in words how the `kind` (model, data) of a run differs from what is asked, or None."""
    if before.get("hash") == now["hash"]:
        return None
    was, asked = (f"{entry.get('source')!r} (hash {str(entry.get('hash'))[:8]})" for entry in (before, now))
    return f"it holds the {kind} {was}, the recipe asks for {asked}"


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
