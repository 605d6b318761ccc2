"""What a report is drawn from: the data of one run, as the stage that gathered it wrote it.

A run directory holds ``report/data.json`` and beside it the tensor files that it names. Its entries are those of our
own stage and are not checked again, except for the mark of their format: directories may be old or come from
elsewhere. Everything but ``subjects`` may be missing; the section that shows it is left out then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

FORMAT = 1
"""What ``data.json`` carries as ``format``; it changes with the meaning of any entry."""

LARGEST = 1e300
"""Numbers beyond are left out as infinities are: a percentage of them would be one."""


@dataclass(frozen=True)
class RunData:
    """The data of one run.

    Attributes:
        data: The entries of ``data.json``; numbers that are not finite are None.
        folder: Where its tensor files lie.
        name: Name of the run.
        metrics: What was measured, by subject; what is None is left out.
        dropped: How many numbers were not finite.
    """

    data: Mapping[str, Any]
    folder: Path
    name: str
    metrics: Mapping[str, dict[str, Any]]
    dropped: int = 0

    @classmethod
    def of(cls, data: Mapping[str, Any], folder: Path) -> RunData:
        """Take the data of a run whose tensor files lie in `folder`."""
        dropped: list[float] = []
        data = _finite(data, dropped)
        metrics = {subject: _known(found) for subject, found in data.get("metrics", {}).items()}
        return cls(data, folder, data.get("name") or folder.resolve().parent.name, metrics, len(dropped))

    @property
    def title(self) -> str:
        """What stands above the report."""
        return self.data.get("title") or self.name

    @property
    def subjects(self) -> list[str]:
        """The models that were looked at, in order."""
        return list(self.data["subjects"])

    @property
    def reference(self) -> str:
        """The subject that the others are compared with (the dense model)."""
        return self.subjects[0]

    @property
    def final(self) -> str | None:
        """The subject that the run ends with, or None if only the reference is there."""
        return self.subjects[-1] if len(self.subjects) > 1 else None

    @property
    def held_out(self) -> str:
        """``"held-out "`` if the images that the models are judged by were held out, else nothing is claimed."""
        return "held-out " if self.data.get("held_out") else ""

    def entry(self, key: str) -> dict[str, Any]:
        """Return a mapping of the data without what is None; empty if it is not there."""
        return {name: value for name, value in (self.data.get(key) or {}).items() if value is not None}

    def metric(self, subject: str | None, key: str) -> Any:
        """Return one metric of one subject, or None."""
        return self.metrics.get(subject or "", {}).get(key)

    def ratio(self, subject: str | None, key: str) -> float | None:
        """Return the metric of `subject` over that of the reference, or None if either is missing or zero."""
        value, base = self.metric(subject, key), self.metric(self.reference, key)
        return value / base if value is not None and base else None

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """Read a tensor file that lies beside the data.

        Raises:
            ValueError: If there is no such file, or it cannot be read.
        """
        file = self.folder / Path(name).name
        try:
            with safe_open(file, framework="numpy") as handle:
                return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, OSError) as error:
            raise ValueError(
                f"{file}: not a readable tensor file ({error}); data.json names it: run the report stage again"
            ) from error


def load_run(path: Path) -> RunData:
    """Read a run directory.

    Raises:
        ValueError: If the directory or its data is missing, is not JSON, or has another format.
    """
    file = path / "report" / "data.json"
    if not path.is_dir():
        raise ValueError(f"run directory {path}: does not exist; the report is built from finished runs")
    if not file.is_file():
        raise ValueError(f"run directory {path}: has no report/data.json; run its report stage first")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(
            f"{file}: not JSON ({error}); the stage that writes it may have been cut off"
        ) from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{file}: format is {found!r}, this version reads {FORMAT}; it was written by another version: run the "
            "report stage of that run again"
        )
    return RunData.of(data, file.parent)


def _finite(value: Any, dropped: list[float]) -> Any:
    """Return JSON values with None for every number that is not finite or too large; collect those in `dropped`."""
    if isinstance(value, Mapping):
        return {key: _finite(entry, dropped) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry, dropped) for entry in value]
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
        dropped.append(value)
        return None
    return value


def _known(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not measured: None, intervals without an end, latencies without a median."""

    def missing(key: str, value: Any) -> bool:
        open_ended = key.endswith("_ci95") and None in (value or [None])
        return value is None or open_ended or (isinstance(value, dict) and value.get("median_s") is None)

    return {key: value for key, value in metrics.items() if not missing(key, value)}
