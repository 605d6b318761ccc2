"""Which model and which data? Both are known by their content, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pruning.data.identity import data_fingerprint
from pruning.files import read_json
from pruning.models import resolve_source
from pruning.recipe import Recipe
from pruning.store import Hashes, hash_of

DENOISER_FOLDERS = ("unet", "transformer", "scheduler")
INDEX = "model_index.json"


def model_identity(recipe: Recipe, hashes: Hashes) -> dict[str, Any]:
    """Return source and hash of the dense model.

    A local model is known by the content of its files: those of the whole pipeline, for its autoencoder and its text
    encoders shape what is measured, or those of a bare denoiser and its scheduler. One on the hub is known by its id,
    revision, variant and subfolder.
    """
    section = recipe.model
    folder = Path(resolve_source(section.source))
    if folder.is_dir():
        files = {
            path.relative_to(folder).as_posix(): hashes.of(path) for path in _files(folder, section.subfolder)
        }
        what: Any = [files, section.variant]
    else:
        what = [section.source, section.revision, section.variant, section.subfolder]
    what = [what, section.null_class]
    return {"source": section.source, "hash": hash_of(what)}


def _files(folder: Path, subfolder: str | None) -> Iterator[Path]:
    """Yield the files that make a local model, in a fixed order."""
    index = read_json(folder / INDEX, "it is no index of a pipeline")
    if index is not None:
        yield folder / INDEX
        names: tuple[str, ...] = tuple(sorted(name for name in index if not name.startswith("_")))
    else:
        names = (subfolder, "scheduler") if subfolder else DENOISER_FOLDERS
    places = [folder / name for name in names if (folder / name).is_dir()] or [folder]
    for place in places:
        yield from sorted(
            path for path in place.iterdir() if path.is_file() and not path.name.startswith(".")
        )


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
