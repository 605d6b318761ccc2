"""What a report is drawn from: the data of one run, as the stage that gathered it wrote it.

A run directory holds ``report/data.json`` and beside it the tensor files that it names. Of its entries only the mark of
their format is checked: directories may be old. One that is missing or null leaves out what would show it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from eval.report import fmt

FORMAT = 1
"""What ``data.json`` carries as ``format``; it changes with the meaning of any entry."""

LEVEL = 0.95
LEAST_LEVEL = 0.9  # an interval of a speed-up that covers less is not shown


@dataclass(frozen=True)
class RunData:
    """The entries of ``data.json`` of one run, and the folder where its tensor files lie."""

    data: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.data["name"]

    @property
    def subjects(self) -> list[str]:
        """The models that were looked at, in order."""
        return self.data["subjects"]

    @property
    def reference(self) -> str:
        """The subject that the others are compared with (the dense model)."""
        return self.subjects[0]

    @property
    def final(self) -> str:
        """The subject that the run ends with."""
        return self.subjects[-1]

    @property
    def held_out(self) -> str:
        """``"held-out "`` if the images that the models are judged by were held out, else nothing is claimed."""
        return "held-out " if self.data.get("held_out") else ""

    @property
    def frechet_name(self) -> str:
        """Name of the Fréchet distance as measured (never FID unless the evaluation says so)."""
        return self.metric(self.reference, "frechet_name") or "Fréchet distance"

    def entry(self, key: str) -> Mapping[str, Any]:
        """Return a mapping of the data; empty if it is not there."""
        return self.data.get(key) or {}

    def metric(self, subject: str, key: str) -> Any:
        """Return one metric of one subject, or None."""
        return self.entry("metrics").get(subject, {}).get(key)

    def ratio(self, subject: str, key: str) -> float | None:
        """Return a metric of `subject` over that of the reference; None if one is missing or the latter not above 0."""
        value, base = self.metric(subject, key), self.metric(self.reference, key)
        return value / base if value is not None and base is not None and base > 0 else None

    def left(self, key: str) -> float | None:
        """Return the share of ``macs`` or ``params`` that is left, as measured, else as planned."""
        measured = self.ratio(self.final, key)
        return self.entry("got").get(f"{key}_ratio") if measured is None else measured

    def speedup(self, subject: str, which: str = "call") -> float | None:
        """Return the measured speed-up of `subject`; None for the reference itself."""
        return None if subject == self.reference else self.metric(subject, f"speedup_{which}")

    def speedup_interval(self, subject: str, which: str = "call") -> str:
        """Return the interval of a speed-up with its true coverage; nothing if the rounds are too few for one."""
        interval = self.metric(subject, f"speedup_{which}_ci95")
        coverage = self.metric(subject, f"speedup_{which}_coverage")
        if not interval or coverage < LEAST_LEVEL:
            return ""
        return f"{fmt.percent(min(LEVEL, coverage), 0)} {fmt.times(interval[0])} to {fmt.times(interval[1])}"

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """Read a tensor file that lies beside the data.

        Raises:
            ValueError: If there is no such file, or it cannot be read.
        """
        file = self.folder / Path(name).name
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file}: not a readable tensor file ({error}); data.json names it: run the report stage again"
            ) from error


def load_run(path: Path) -> RunData:
    """Read a run directory.

    Raises:
        ValueError: If its data are missing, are not JSON, or have another format.
    """
    file = path / "report" / "data.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of the file, of JSON or of UTF-8
        raise ValueError(
            f"{file}: cannot be read as JSON ({error}); run the report stage of that run again"
        ) from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{file}: format is {found!r}, this version reads {FORMAT}; it was written by another version: run the "
            "report stage of that run again"
        )
    return RunData(data, file.parent)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what lies at the ends of nested mappings, by dotted path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
