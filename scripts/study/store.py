"""Where results lie while the study runs: one JSON line a cell, and the errors of its images beside."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from study.subjects import Cell


class Store:
    """Results in a folder; what is there is not measured again.

    Args:
        folder: Made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "cells.jsonl"
        self.rows = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        rows = {}
        if self._path.exists():
            whole = self._path.read_bytes()
            end = whole.rfind(b"\n") + 1  # a killed run may leave half a line
            if end < len(whole):
                self._path.write_bytes(whole[:end])
            for line in whole[:end].decode().splitlines():
                row = json.loads(line)
                rows[row.pop("key")] = row
        return rows

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self.rows

    def add(self, cell: Cell, result: dict[str, Any], change: np.ndarray, power: np.ndarray) -> None:
        """Keep a cell's result, and its errors by image for the bootstrap."""
        images = self.folder / "images"
        images.mkdir(exist_ok=True)
        np.save(images / (cell.key.replace("/", "_") + ".npy"), np.stack([change, power]).astype(np.float32))
        row = {**asdict(cell), "label": cell.label, **result}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": cell.key, **row}) + "\n")
        self.rows[cell.key] = row

    def images(self, cell: Cell) -> np.ndarray | None:
        """Return squared changes and squared predictions by image, ``(2, images)``; None if they are gone."""
        path = self.folder / "images" / (cell.key.replace("/", "_") + ".npy")
        return np.load(path).astype(float) if path.exists() else None

    def fact(self, model: str, name: str) -> Any | None:
        """Return what is known of a model, or None."""
        path = self.folder / f"{name}-{model}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def keep_fact(self, model: str, name: str, value: Any) -> None:
        """Keep what is known of a model."""
        (self.folder / f"{name}-{model}.json").write_text(json.dumps(value, indent=1) + "\n")
