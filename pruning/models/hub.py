"""JSON files of a model source, local or on the hub, and the one question whether the hub has a source at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from pruning.errors import PruningError
from pruning.files import read_json
from pruning.models.sources import local_folder, near_name, resolve_source

MEND = "mend it, or get the model again"


def fetch_json(source: str, folder: str | None, name: str, revision: str | None) -> dict[str, Any] | None:
    """Return a JSON file of a local folder or a hub repository, or None if it is not there.

    Raises:
        PruningError: If it holds no JSON object, or there is no such source.
    """
    root = local_folder(source)
    if root is not None:
        return read_json(root / (folder or "") / name, MEND)
    place = f"{folder}/{name}" if folder else name
    missing = f"model source {source!r} is no folder here{near_name(Path(source))}"
    if try_to_load_from_cache(source, place, revision=revision) is None:
        ask_hub(missing, source, place, revision=revision)
    try:
        path = hf_hub_download(source, name, subfolder=folder, revision=revision)
    except Exception as error:  # gated, no network, no permission to write the cache, …
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise _unfetched(missing, error) from error
    return read_json(Path(path), MEND)


def pipeline_index(source: str | Path, revision: str | None = None) -> dict[str, Any] | None:
    """Return the ``model_index.json`` of a source; None where the source is no pipeline.

    Raises:
        PruningError: As `fetch_json` does.
    """
    resolved = resolve_source(source)
    return None if Path(resolved).is_file() else fetch_json(resolved, None, "model_index.json", revision)


def ask_hub(
    missing: str, source: str, file: str = "README.md", *, revision: str | None = None, kind: str = "model"
) -> None:
    """Ask the hub once whether it has a source: a download of what it has not would be tried for half a minute.

    If there is no such repository of this kind (``model``, ``dataset``), or no way to it, a PruningError says what is
    `missing`; the hub may answer that there is no such file.
    """
    try:
        get_hf_file_metadata(hf_hub_url(source, file, revision=revision, repo_type=kind))
    except EntryNotFoundError:
        return
    except Exception as error:  # no such repository, gated, no network, …
        raise _unfetched(missing, error) from error


def _unfetched(missing: str, error: Exception) -> PruningError:
    return PruningError(
        f"{missing}, and as a hub id it cannot be fetched: {type(error).__name__}: {error}; check the spelling, or "
        "the network (without one, name a folder that is here)"
    )
