"""Reading a run directory: plain JSON and tensor files in, checked values out.

The layout is ``<run>/summary.json`` (optional) and ``<run>/report/data.json`` with the tensor files that it
names beside it. Everything but ``subjects`` may be missing; the report then drops that section. A value that
is there has to be right: each error names the file, the place in it, the rule and what was found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.report.node import Node, read_json
from eval.report.tensors import HeadOutput, Site, read_outputs, read_samples, read_sites

LATENCIES = ("call", "sampling")
NUMBERS = frozenset(
    (
        *("params", "macs", "file_bytes", "peak_memory_bytes", "speedup_call", "speedup_sampling"),
        *("speedup_call_coverage", "speedup_sampling_coverage"),
        *("frechet", "frechet_ratio", "frechet_num_generated", "kernel", "kernel_std", "ssim", "mse"),
        *("denoising_error_mean", "excess_error"),
    )
)


@dataclass(frozen=True)
class Cut:
    """What happened to one group: `kept` of `total` units, or `removed` with its whole block."""

    group: str
    module: str
    kind: str
    kept: int
    total: int
    removed: bool


@dataclass(frozen=True)
class Head:
    """Diagnostics of one attention head (SCORES.md section 4); `fluctuation_ratio` is R_h, None if undefined."""

    group: str
    head: int
    sink_mass: float
    fluctuation_ratio: float | None
    label: str
    kept: bool


@dataclass(frozen=True)
class CriterionCut:
    """What one criterion would cut: a share of each group; `own` marks the one that the run went by."""

    name: str
    own: bool
    shares: list[float]


@dataclass(frozen=True)
class CriteriaCuts:
    """Criteria held side by side at one target.

    Attributes:
        groups: Module path and kind of each group, in model order.
        rows: The criteria, the run's own first.
        left_out: Why, and which criteria.
        note: Why there is nothing to compare, or empty.
    """

    groups: list[tuple[str, str]]
    rows: list[CriterionCut]
    left_out: list[tuple[str, list[str]]]
    note: str

    @property
    def words(self) -> str:
        """Which criteria are left out, and why."""
        found = [f"{', '.join(names)} ({why})" for why, names in self.left_out]
        return f"Not computed: {'; '.join(found)}." if found else ""


@dataclass(frozen=True)
class Curve:
    """Loss by optimiser step; None where it was not finite."""

    steps: list[float]
    loss: list[float | None]


@dataclass(frozen=True)
class Run:
    """One run directory, checked; see the module docstring for what may be missing."""

    path: Path
    name: str
    title: str
    subjects: list[str]
    metrics: dict[str, dict[str, Any]]
    asked: dict[str, Any] = field(default_factory=dict)
    got: dict[str, Any] = field(default_factory=dict)
    created: str | None = None
    model: str | None = None
    data: str | None = None
    device: str | None = None
    recipe_yaml: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    seeds: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    recovery: Curve | None = None
    heads: list[Head] = field(default_factory=list)
    samples: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    labels: list[int] | None = None
    captions: list[str] | None = None
    sites: list[Site] = field(default_factory=list)
    outputs: list[HeadOutput] = field(default_factory=list)
    outputs_note: str = ""
    criteria: CriteriaCuts | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        """The subject that the others are compared with (the dense model)."""
        return self.subjects[0]

    @property
    def final(self) -> str | None:
        """The subject that the run ends with, or None if only the reference is there."""
        return self.subjects[-1] if len(self.subjects) > 1 else None

    def metric(self, subject: str | None, key: str) -> Any:
        """Return one metric of one subject, or None."""
        return self.metrics.get(subject or "", {}).get(key)

    def ratio(self, subject: str | None, key: str) -> float | None:
        """Return the metric of `subject` over that of the reference, or None if either is missing or zero."""
        value, base = self.metric(subject, key), self.metric(self.reference, key)
        return value / base if value is not None and base else None


def load_run(path: Path) -> Run:
    """Read and check one run directory.

    Raises:
        ValueError: If the directory or its data.json is missing, a file is broken, or a value has the wrong
            type, shape or range; the message names the file, the place and the rule.
    """
    path = Path(path)
    file = path / "report" / "data.json"
    if not path.is_dir():
        raise ValueError(f"run directory {path}: does not exist; the report is built from finished runs")
    if not file.is_file():
        raise ValueError(f"run directory {path}: has no report/data.json; run its report stage first")
    data, broken = read_json(file)
    metrics = {name: _metrics(child) for name, child in data.get("metrics").entries().items()}
    subjects = _subjects(data, list(metrics))
    _fill_from_summary(path / "summary.json", subjects, metrics)
    samples, labels = read_samples(data.get("samples"), subjects)
    captions = data.get("captions")
    warnings = [child.text() for child in data.get("warnings").items()]
    if broken:
        warnings.append(f"{broken} value(s) in data.json were not finite (NaN or infinity) and are left out.")
    name = data.get("name").text(path.resolve().name)
    return Run(
        path=path,
        name=name,
        title=data.get("title").text(name),
        subjects=subjects,
        metrics=metrics,
        asked=data.get("asked").plain(),
        got=data.get("got").plain(),
        created=data.get("created").optional_text(),
        model=data.get("model").optional_text(),
        data=data.get("data").optional_text(),
        device=data.get("device").optional_text(),
        recipe_yaml=data.get("recipe_yaml").optional_text(),
        versions=data.get("versions").plain(),
        seconds={key: child.required_number(low=0) for key, child in data.get("seconds").entries().items()},
        seeds=data.get("seeds").plain(),
        facts=data.get("facts").plain(),
        cuts=[_cut(child) for child in data.get("cuts").items()],
        recovery=_curve(data.get("recovery")),
        heads=[_head(child) for child in data.get("diagnostics").get("heads").items()],
        samples=samples,
        labels=labels,
        captions=[child.text() for child in captions.items()] or None,
        sites=read_sites(data.get("sinks"), data.get("sink_sites")),
        outputs=read_outputs(data.get("folding").get("file"), data.get("folding").get("heads")),
        outputs_note=data.get("folding").get("note").text(""),
        criteria=_criteria(data.get("criteria")),
        warnings=warnings,
        notes=[child.text() for child in data.get("notes").items()],
    )


def _subjects(data: Node, measured: list[str]) -> list[str]:
    """Return the names of the subjects, those that were measured if none are listed."""
    subjects = [child.text() for child in data.get("subjects").items()] or measured
    if not subjects or len(set(subjects)) != len(subjects):
        rule = "must be a list of distinct names, reference first"
        raise ValueError(f"{data.file}: subjects: {rule}, found {subjects!r}")
    return subjects


def _fill_from_summary(file: Path, subjects: list[str], metrics: dict[str, dict[str, Any]]) -> None:
    """Take Fréchet distances from summary.json where data.json has none (``frechet_<subject>``)."""
    if not file.is_file():
        return
    summary, _ = read_json(file)
    for subject in subjects:
        found = summary.get(f"frechet_{subject}").number()
        if found is not None:
            metrics.setdefault(subject, {}).setdefault("frechet", found)


def _metrics(node: Node) -> dict[str, Any]:
    """Check the metrics of one subject; numbers of unknown name are kept, so that a new metric shows up."""
    found: dict[str, Any] = {}
    for key, child in node.entries().items():
        if child.value is None:
            continue
        if key in LATENCIES:
            found[key] = _latency(child)
        elif key.endswith("_ci95"):
            found[key] = _interval(child)
        elif key == "denoising_error":
            found[key] = [item.number() for item in child.items()]
        elif key in NUMBERS or (isinstance(child.value, (int, float)) and not isinstance(child.value, bool)):
            found[key] = child.number()
        elif isinstance(child.value, str):
            found[key] = child.value
    return {key: value for key, value in found.items() if value is not None}


def _latency(node: Node) -> dict[str, Any]:
    """Check one latency record: ``median_s`` > 0, ``iqr_s`` >= 0 or null, and free facts beside them."""
    record: dict[str, Any] = {
        key: value for key, value in node.plain().items() if isinstance(value, (str, int, float))
    }
    record["median_s"] = node.get("median_s").required_number(low=0)
    if record["median_s"] == 0:
        raise ValueError(f"{node.place}.median_s: a latency must be above 0 seconds, found 0")
    record["iqr_s"] = node.get("iqr_s").number(low=0)
    return record


def _interval(node: Node) -> tuple[float, float] | None:
    """Check an interval ``[low, high]``."""
    ends = [child.number() for child in node.items()]
    if len(ends) != 2:
        raise ValueError(f"{node.place}: an interval must be [low, high], found {node.value!r}")
    if ends[0] is None or ends[1] is None:
        return None
    if ends[0] > ends[1]:
        raise ValueError(
            f"{node.place}: an interval must be [low, high] with low <= high, found {node.value!r}"
        )
    return ends[0], ends[1]


def _cut(node: Node) -> Cut:
    total, kept = node.get("total").integer(low=1), node.get("kept").integer(low=0)
    if kept > total:
        raise ValueError(f"{node.place}.kept: must lie between 0 and total = {total}, found {kept}")
    return Cut(
        group=node.get("group").text(),
        module=node.get("module").text(),
        kind=node.get("kind").text(),
        kept=kept,
        total=total,
        removed=node.get("removed").flag(False),
    )


def _head(node: Node) -> Head:
    return Head(
        group=node.get("group").text(),
        head=node.get("head").integer(low=0),
        sink_mass=node.get("sink_mass").required_number(low=0, high=1),
        fluctuation_ratio=node.get("fluctuation_ratio").number(low=0),
        label=node.get("label").text("ordinary"),
        kept=node.get("kept").flag(True),
    )


def _criteria(node: Node) -> CriteriaCuts | None:
    """Check which share of each group every criterion would cut."""
    if not node.entries():
        return None
    groups = [(child.get("module").text(), child.get("kind").text()) for child in node.get("groups").items()]
    rows = []
    for child in node.get("rows").items():
        shares = [share.required_number(low=0, high=1) for share in child.get("shares").items()]
        if len(shares) != len(groups):
            raise ValueError(f"{child.place}.shares: must be one a group, {len(groups)}, found {len(shares)}")
        rows.append(CriterionCut(child.get("name").text(), child.get("own").flag(False), shares))
    left_out = [
        (child.get("why").text(), [name.text() for name in child.get("names").items()])
        for child in node.get("left_out").items()
    ]
    return CriteriaCuts(groups, rows, left_out, node.get("note").text(""))


def _curve(node: Node) -> Curve | None:
    if not node.entries():
        return None
    steps = [child.required_number() for child in node.get("steps").items()]
    loss = [child.number() for child in node.get("loss").items()]
    if len(steps) != len(loss):
        raise ValueError(
            f"{node.place}: steps and loss must be of one length, found {len(steps)} and {len(loss)}"
        )
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"{node.place}.steps: must increase from one entry to the next")
    return Curve(steps, loss) if any(value is not None for value in loss) else None
