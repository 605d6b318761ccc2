"""Publishing a run: the slim folder with its card goes to a model hub, and nothing that is of this machine alone.

Reads files alone; the network is asked by `send` and by nothing else.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from pruning.errors import PruningError
from pruning.files import MACHINE_PATH, machine_paths, write_errors, write_json, write_text
from pruning.stages.folder import RunFolder
from pruning.store import link_tree

SOURCE = "diffusers"
"""The format of the stage ``export`` that is published."""
PARCEL = "push"
"""Folder of a run directory in which lies what is sent."""
CARD = "README.md"
OURS = "sinkprune"
"""Tag of our cards: a repository that carries it was pushed by us and may be brought up to date."""
LEFT_ALONE = {".gitattributes"}
"""Files that a hub puts into a new repository by itself."""


@dataclass(frozen=True)
class Parcel:
    """What is to be published.

    Attributes:
        folder: Where it lies: weights, configs, card.
        repo: ``owner/name`` on the hub.
        files: Bytes by file.
        left_out: Entries of configs that named places on some machine and were taken out, ``file: entry``.
        licence: What the card says of the licence, None if it says nothing.
    """

    folder: Path
    repo: str
    files: dict[str, int]
    left_out: list[str]
    licence: str | None


def prepare(run: RunFolder, repo: str, *, licence: str | None = None) -> Parcel:
    """Lay out in ``<run>/push`` what is published of a run; weights are links, no byte of them is copied.

    Args:
        run: A run whose stage ``export`` is done.
        repo: ``owner/name`` on the hub.
        licence: As the hub calls it, e.g. ``apache-2.0``; None: what the dense model's own card said.

    Raises:
        PruningError: For a name that no repository can have, a run that is not done or has another format, or a card
            that names folders of this machine.
    """
    _check_name(repo)
    if run.owner() is None:
        raise PruningError(
            f"{run.path}: no run directory (run.json); `sinkprune ls runs` lists those of ./runs"
        )
    source = run.whole("export").folder / SOURCE
    if not source.is_dir():
        raise PruningError(
            f"{run.path}: the run has no {SOURCE} folder to publish; run it with export.formats=[{SOURCE}]"
        )
    folder = run.path / PARCEL
    with write_errors("what is to be published", run.path, "Nothing has been sent"):
        link_tree(source, folder)
        left_out = [
            f"{path.relative_to(folder)}: {entry}" for path in _configs(folder) for entry in _clean(path)
        ]
        said = _finish_card(folder / CARD, repo, licence)
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Parcel(folder, repo, files, left_out, said)


def _check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
        known = repo.count("/") == 1
    except HFValidationError as error:
        raise PruningError(f"--repo {repo!r}: {error}") from error
    if not known:
        raise PruningError(f"--repo {repo!r}: a repository is OWNER/NAME, e.g. my-group/slim-dit")


def _configs(folder: Path) -> list[Path]:
    """Return the files in which libraries write down settings; vocabularies are none."""
    return [
        path for path in sorted(folder.rglob("*.json")) if re.search(r"(config|index|map)\.json$", path.name)
    ]


def _clean(path: Path) -> list[str]:
    """Take entries that are places on some machine out of a config; return their names."""
    found = json.loads(path.read_text(encoding="utf-8"))
    taken: list[str] = []

    def kept(value: Any, place: str) -> Any:
        if isinstance(value, dict):
            fine = {key: entry for key, entry in value.items() if not _is_place(entry)}
            taken.extend(f"{place}{key}" for key in value if key not in fine)
            return {key: kept(entry, f"{place}{key}.") for key, entry in fine.items()}
        return [kept(entry, place) for entry in value] if isinstance(value, list) else value

    cleaned = kept(found, "")
    if taken:
        write_json(path, cleaned)
    return taken


def _is_place(value: Any) -> bool:
    found = MACHINE_PATH.match(value) if isinstance(value, str) else None
    if found is None:
        return False
    return found.end() == len(value) or len(re.findall(r"[/\\]", found[0])) > 1


def _finish_card(path: Path, repo: str, licence: str | None) -> str | None:
    """Put the repository's name, and the licence if it is given, into a card; return the licence that it states."""
    card = ModelCard(path.read_text(encoding="utf-8"))
    data: Any = card.data
    if licence is not None:
        data.license, data.license_name, data.license_link = licence, None, None
    text = re.sub(r'^folder = ".*$', f'folder = "{repo}"', str(card), count=1, flags=re.MULTILINE)
    if found := machine_paths(text):
        raise PruningError(
            f"{path}: the card names places on this machine ({', '.join(found[:3])}), which nobody else has; write it "
            "anew with `sinkprune export RUN --redo`, or change what the recipe's title says. Nothing has been sent"
        )
    write_text(path, text)
    return data.license


def send(parcel: Parcel, api: HfApi, *, private: bool = False) -> dict[str, Any]:
    """Send a parcel: into a new repository, an empty one, or one that holds an earlier push.

    Args:
        parcel: What `prepare` laid out.
        api: With the token of who may write there.
        private: Nobody else may see it. An existing repository must be private then.

    Returns:
        JSON types: ``url`` of the repository, ``commit``, ``created``, ``private``, ``removed`` (files of an earlier
        push).

    Raises:
        PruningError: Without a token, for a repository with other content or one that is public against what was asked,
            or what the hub or the network refuses.
    """
    repo, place = parcel.repo, api.endpoint
    if not api.token:
        raise PruningError(
            f"{place} asks who you are and there is no token: `hf auth login` keeps one, or set HF_TOKEN to one that "
            f"may write to {repo}. With --dry-run nothing is sent"
        )
    with _answers(f"checking the token at {place}"):
        api.whoami()
    with _answers(f"looking for {repo} at {place}"):
        try:
            known = api.model_info(repo)
        except RepositoryNotFoundError:
            known = None
    if known is None:
        with _answers(f"making {repo} at {place}"):
            api.create_repo(repo, repo_type="model", private=private or None)
    removed = [] if known is None else _outdated(known, parcel, f"{place}/{repo}", private=private)
    with _answers(f"sending the files to {place}/{repo}"):
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=parcel.folder,
            commit_message="Push with sinkprune",
            delete_patterns=[glob.escape(name) for name in removed] or None,
        )
        now = api.model_info(repo)
    return {
        "url": f"{place}/{repo}",
        "commit": commit.oid,
        "created": known is None,
        "private": bool(now.private),  # an owner's default may be private, too
        "removed": removed,
    }


def _outdated(known: ModelInfo, parcel: Parcel, place: str, *, private: bool) -> list[str]:
    """Return the files of an earlier push that are to go; a repository that must be left alone is a PruningError."""
    there = {file.rfilename for file in known.siblings or ()} - LEFT_ALONE
    if there and OURS not in (known.tags or ()):
        raise PruningError(
            f"{place} holds other content ({', '.join(sorted(there)[:3])}); nothing has been sent: choose another "
            "name, or empty it first"
        )
    if private and not known.private:
        raise PruningError(
            f"{place} is there and public, and --private was asked; nothing has been sent: make it private, or choose "
            "another name"
        )
    return sorted(there - parcel.files.keys())


@contextmanager
def _answers(doing: str) -> Iterator[None]:
    """Let what a hub or the network says become one PruningError."""
    try:
        yield
    except HfHubHTTPError as error:
        said = error.server_message or str(error).strip().partition("\n")[0]
        raise PruningError(f"{doing}: {said} (HTTP {error.response.status_code})") from error
    except Exception as error:  # the client's own, and those of the library by which it reaches the network
        reason = str(error).strip().partition("\n")[0]
        raise PruningError(f"{doing}: {type(error).__name__}: {reason}") from error
