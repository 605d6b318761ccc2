"""Which model and which data? Both are known by their content, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pruning.data.identity import data_fingerprint
from pruning.files import read_json
from pruning.models import resolve_source
from pruning.models.sources import DENOISER_FOLDERS
from pruning.recipe import Recipe
from pruning.store import Hashes, hash_of

INDEX = "model_index.json"
KNOWN_BY = ("variant", "subfolder", "null_class")
"""Settings that make another model of the same files."""


def model_identity(recipe: Recipe, hashes: Hashes) -> dict[str, Any]:
    """Return source and hash of the dense model, and of the slim one that is cut in its place, if any.

    A local model is known by the content of all files that loading may read: those of the whole pipeline, for its
    autoencoder and its text encoders shape what is measured, or those of a bare denoiser and its scheduler. One on the
    hub is known by its id and revision.
    """
    section = recipe.model
    folder = Path(resolve_source(section.source))
    if folder.is_dir():
        files = {
            path.relative_to(folder).as_posix(): hashes.of(path) for path in _files(folder, section.subfolder)
        }
    else:
        files = {section.source: section.revision}
    if section.start is not None:
        start = Path(resolve_source(section.start))
        files |= {f"start/{path.name}": hashes.of(path) for path in _files(start, None)}
    named = {key: getattr(section, key) for key in KNOWN_BY}
    return {"source": section.source, **named, "hash": hash_of([files, *named.values()])}


def _files(folder: Path, subfolder: str | None) -> Iterator[Path]:
    """Yield the files that make a local model, in a fixed order."""
    index = read_json(folder / INDEX, "it is no index of a pipeline")
    # Beside the parts of a pipeline may lie whole checkpoints that nothing reads.
    own = folder.glob("*" if index is None else "*.json")
    names = {*(index or ()), *DENOISER_FOLDERS, "scheduler", subfolder or "."} - {"."}
    inner = [path for name in sorted(names) for path in (folder / name).glob("*")]
    yield from sorted(path for path in [*own, *inner] if path.is_file() and not path.name.startswith("."))


def data_identity(recipe: Recipe, known: Mapping[str, Any], hashes: Hashes) -> dict[str, Any]:
    """Return source, content and hash of the data.

    The content is known as `pruning.data.identity.data_fingerprint` says. The hash, by which stages know the data, is
    that of the content when the run began: it stays when a row that could not be read was mended.

    Args:
        recipe: Names the data.
        known: What was returned before for this run; `broken` if a row could not be read.
        hashes: Of files.
    """
    source = recipe.data.source
    content, words = data_fingerprint(source, hashes.of)
    mended = known.get("broken") is True and known.get("source") == source
    same = "hash" in known and (mended or known.get("content") == content)
    return {
        "source": source,
        "content": content,
        "hash": known["hash"] if same else content,
        "known_by": words,
    }
