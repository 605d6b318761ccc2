"""What is kept: a result, known by what it depends on.

::

    <store>/<kind>/<id>/…        artefacts, manifest.json and, last, DONE; renamed there whole and never changed
    <store>/.partial/<kind>-<id> a result that is being made
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from pruning.errors import shown
from pruning.files import share, write_json
from pruning.store.hashes import file_hash, files_of, hash_of, is_as_described

FORMAT = 1
"""Part of every key, as our version is: another number makes all earlier results strangers."""
MANIFEST, DONE = "manifest.json", "DONE"
SEALED = {"kind", "id", "base", "asked", "artefacts", "result", "finished"}
"""What every manifest says."""
BESIDE = (MANIFEST, DONE)
"""Files of a result that are no artefacts."""
SCRATCH = ".scratch"
"""Folder in which work keeps what an interrupted attempt goes on from; it is gone when the result is whole."""


@cache
def version_of(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Key:
    """What a result depends on.

    Attributes:
        kind: What it is, such as ``calibrate``.
        config: Settings that must be equal (JSON types).
        inputs: Hashes of what it is made from.
        asked: Lists of names that it must hold at least; what holds more serves, too.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """Hash of all but what is asked."""
        return hash_of([FORMAT, version_of("sinkprune"), self.kind, self.config, self.inputs])

    @property
    def id(self) -> str:
        """Hash of everything, short enough for a folder."""
        return hash_of([self.base, self.asked])[:20]

    @property
    def name(self) -> str:
        """Name of its result in the store, ``<kind>/<id>``."""
        return f"{self.kind}/{self.id}"


@dataclass(frozen=True)
class Result:
    """A result that was made whole.

    Attributes:
        folder: Where it lies.
        manifest: What was written down of it: the key, ``artefacts`` (size, time and hash of each file), what its work
            said (``result``: figures worth showing, ``uses``: names of results that it was made from, ``seconds``, …).
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """Return the result in a folder, None if there is none or its record is not as `seal` wrote it."""
        try:
            if (folder / DONE).read_bytes().strip() != file_hash(folder / MANIFEST).encode():
                return None
            manifest = json.loads((folder / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None
        return cls(folder, manifest) if isinstance(manifest, dict) and manifest.keys() >= SEALED else None

    @staticmethod
    def seal(folder: Path, key: Key, said: Mapping[str, Any]) -> None:
        """Write down what was made, and last that it is whole: ``DONE`` holds the hash of the manifest."""
        share(folder)
        artefacts = {
            name: {**state, "sha256": file_hash(folder / name)}
            for name, state in files_of(folder).items()
            if name not in BESIDE and not name.startswith(f"{SCRATCH}/")
        }
        manifest = {
            "kind": key.kind,
            "id": key.id,
            "base": key.base,
            "config": key.config,
            "asked": key.asked,
            "inputs": key.inputs,
            "result": {},
            "uses": [],
            **said,
            "finished": datetime.now().isoformat(timespec="seconds"),
            "artefacts": artefacts,
        }
        write_json(folder / MANIFEST, manifest)
        (folder / DONE).write_text(file_hash(folder / MANIFEST) + "\n", encoding="utf-8")

    @property
    def kind(self) -> str:
        """What it is."""
        return self.manifest["kind"]

    @property
    def name(self) -> str:
        """Its name in the store, that of the key that it was made for."""
        return f"{self.kind}/{self.manifest['id']}"

    @property
    def figures(self) -> dict[str, Any]:
        """The figures worth showing."""
        return self.manifest["result"]

    @property
    def output_hash(self) -> str:
        """One hash over names and contents of its files."""
        return hash_of({name: entry["sha256"] for name, entry in self.manifest["artefacts"].items()})

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return sum(entry["bytes"] for entry in self.manifest["artefacts"].values())

    def serves(self, key: Key) -> bool:
        """Tell whether this is what `key` asks for, or holds more than that."""
        if self.kind != key.kind or self.manifest["base"] != key.base:
            return False
        return all(
            set(names) <= set(self.manifest["asked"].get(what, ())) for what, names in key.asked.items()
        )

    def damage(self) -> str | None:
        """Return in words which file is not as it was written, or None."""
        for name, entry in self.manifest["artefacts"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if not is_as_described(path, entry):
                return f"{name} was changed"
        return None


def changes(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return ``(key path, before, after)`` for every leaf that differs; a missing one is None."""
    if isinstance(before, Mapping) or isinstance(after, Mapping):
        left, right = (x if isinstance(x, Mapping) else {} for x in (before, after))
        return [
            change
            for key in {**left, **right}
            for change in changes(left.get(key), right.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if before == after else [(prefix, before, after)]


def changes_in_words(before: Any, after: Any, most: int = 3) -> str:
    """Say in which leaves two differ, of many the first; nothing where they are equal."""
    words = [f"{place} was {shown(old)}, is {shown(new)}" for place, old, new in changes(before, after)]
    return "; ".join(words[:most])
