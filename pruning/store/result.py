"""What is kept: a result, known by what it depends on.

::

    <store>/<kind>/<id>/…        artefacts, manifest.json and, last, DONE; renamed there whole and never changed
    <store>/.partial/<kind>-<id> a result that is being made
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning.files import read_json
from pruning.store.artefacts import hash_now, is_entry, outputs

FORMAT = 1
"""Part of every key: another number makes all earlier results strangers."""
MANIFEST, DONE = "manifest.json", "DONE"
BESIDE = (MANIFEST, DONE)
"""Files of a result that are no artefacts."""
SCRATCH = ".scratch"
"""Folder in which work keeps what an interrupted attempt goes on from; it is gone when the result is whole."""

Enough = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
"""``(asked when it was made, asked now) -> bool``: what was made holds all that is asked, and perhaps more."""

_FIELDS = {
    "kind": str,
    "id": str,
    "base": str,
    "config": dict,
    "inputs": dict,
    "asked": dict,
    "result": dict,
    "artefacts": dict,
    "uses": list,
    "finished": str,
    "seconds": (int, float),
}


@dataclass(frozen=True)
class Key:
    """What a result depends on.

    Attributes:
        kind: What it is, such as ``calibrate``.
        config: Settings that must be equal (JSON types).
        inputs: Hashes of what it is made from.
        asked: What it must hold at least (JSON types); see `enough`.
        enough: Tells whether a result that was asked for other things serves; None: only for equal ones.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    asked: Mapping[str, Any] = field(default_factory=dict)
    enough: Enough | None = None

    @property
    def base(self) -> str:
        """Hash of all but what is asked."""
        return _hash([FORMAT, self.kind, self.config, self.inputs])

    @property
    def id(self) -> str:
        """Hash of everything, short enough for a folder."""
        return _hash([self.base, self.asked])[:20]

    @property
    def whole_config(self) -> dict[str, Any]:
        """Settings and what is asked, as a reader wants them."""
        return {**self.config, **self.asked}


@dataclass(frozen=True)
class Result:
    """A result that was made whole.

    Attributes:
        folder: Where it lies.
        manifest: What was written down of it; see `Result.read`.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """Return the result in a folder, None if there is none or it is no whole record of one."""
        if not (folder / DONE).is_file():
            return None
        try:
            found = read_json(folder / MANIFEST)
        except ValueError:
            return None
        if found is None or not all(isinstance(found.get(key), kind) for key, kind in _FIELDS.items()):
            return None
        if not all(is_entry(entry) for entry in found["artefacts"].values()):
            return None
        return cls(folder, found)

    @property
    def kind(self) -> str:
        """What it is."""
        return self.manifest["kind"]

    @property
    def id(self) -> str:
        """The id of the key that it was made for."""
        return self.manifest["id"]

    @property
    def name(self) -> str:
        """Its name in the store, ``<kind>/<id>``."""
        return f"{self.kind}/{self.id}"

    @property
    def figures(self) -> dict[str, Any]:
        """The figures worth showing."""
        return self.manifest["result"]

    @property
    def output_hash(self) -> str:
        """One hash over names and contents of its files."""
        return outputs(self.manifest["artefacts"])

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return sum(entry["bytes"] for entry in self.manifest["artefacts"].values())

    def serves(self, key: Key) -> bool:
        """Tell whether this is what `key` asks for, or holds more than that."""
        if self.kind != key.kind or self.manifest["base"] != key.base:
            return False
        if self.id == key.id:
            return True
        return key.enough is not None and key.enough(self.manifest["asked"], key.asked)

    def damage(self) -> str | None:
        """Return in words which file is not as it was written, or None."""
        for name, entry in self.manifest["artefacts"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if hash_now(path, entry) != entry["sha256"]:
                return f"{name} was changed"
        return None


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
