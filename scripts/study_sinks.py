"""Is sink-awareness true for image models? The study, step by step and resumable; see docs/studies/sink-awareness.md.

    python scripts/study_sinks.py run --models digits-dit digits-unet --minutes 60
    python scripts/study_sinks.py publish     # docs/studies/sink-awareness.json and its plots
    python scripts/study_sinks.py --summary   # the table; the last line is JSON

`run` measures what is missing, cell by cell, in the order of the grid (`scripts/study/subjects.py`), and may be
killed at any time. The models beyond the embedded ones come from `scripts/train_base.py` and
`scripts/train_study.py`; a model whose folder is not there is left out with a warning.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from study import facts, publish  # noqa: E402
from study.bench import Bench, needed, sink_weights_of  # noqa: E402
from study.recovery import measure_recovery  # noqa: E402
from study.store import Store  # noqa: E402
from study.subjects import SUBJECTS, Cell, cells, recovery_cells  # noqa: E402
from study_models.attention import OFF_BY_ONE, attention_of, set_off_by_one  # noqa: E402

log = logging.getLogger("study")
WORK, PUBLISHED = ROOT / "runs/study", ROOT / "docs/studies"


def run(names: list[str], minutes: float, steps: list[str], only: list[str] | None = None) -> None:
    """Measure what is missing for the models named, until the time is up."""
    end = time.monotonic() + 60 * minutes
    store = Store(WORK)
    for name in names:
        subject = SUBJECTS[name]
        if not subject.source.startswith("bundled:") and not Path(subject.source).exists():
            log.warning("%s is left out: there is no %s", name, subject.source)
            continue
        bench = Bench(subject, attention_as_trained(Path(subject.source)))
        if "facts" in steps:
            measure_facts(bench, store)
        if "cells" in steps:
            measure_cells(bench, store, end, only)
        if "heads" in steps:
            measure_fact(bench, store, "heads", lambda b: facts.head_truth(b, batches=8))
        if "recovery" in steps:
            for cell in recovery_cells(subject):
                if cell not in store and time.monotonic() < end:
                    measure_recovery(bench, store, cell)
        if time.monotonic() > end:
            log.info("time is up in %s", name)
            return


def attention_as_trained(folder: Path) -> Callable[[nn.Module], object]:
    """Return what puts on a model the attention that its folder's training.json names (diffusers forgets it)."""
    return set_off_by_one if attention_of(folder) == OFF_BY_ONE else lambda model: None


def measure_facts(bench: Bench, store: Store) -> None:
    """Measure step 0, the pre-test and what a bias by timestep could win, once."""
    measure_fact(bench, store, "precondition", facts.precondition)
    measure_fact(bench, store, "pretest", facts.pretest)
    measure_fact(bench, store, "timestep-share", facts.timestep_share)


def measure_fact(bench: Bench, store: Store, fact: str, measure: Callable[[Bench], Any]) -> None:
    """Measure one thing about a model unless it is known."""
    name = bench.subject.name
    if store.fact(name, fact) is None:
        found = measure(bench)
        store.keep_fact(name, fact, found)
        shown = facts.correlations(found) if isinstance(found, list) else found
        log.info("%s %s: %s", name, fact, shown)


def measure_cells(bench: Bench, store: Store, end: float, only: list[str] | None) -> None:
    """Measure the cells of a subject (of some criteria alone); those that share a calibration are measured on one."""
    found = store.fact(bench.subject.name, "precondition")
    if found is None:
        raise SystemExit(f"{bench.subject.name}: step 0 is not measured yet; run with --steps facts first")
    sinks = found["testable"] or bench.subject.factorial
    wanted = [c for c in cells(bench.subject, sinks) if only is None or c.criterion in only]
    missing = [cell for cell in wanted if cell not in store]
    total, done = len(missing), 0
    for _, members in itertools.groupby(missing, key=_calibration):
        group = list(members)
        needs = set[str]().union(*(needed(cell, bench.groups) for cell in group))
        variants = {cell.omega for cell in group} - {"off"}
        start = time.monotonic()
        last = max(group, key=lambda cell: cell.draw)  # a set has one draw
        stats = bench.calibrate(last.seed, needs, variants, sink_weights_of(last), draw=last.draw)
        log.info(
            "%s: calibration set %d in %.0f s", bench.subject.name, group[0].seed, time.monotonic() - start
        )
        for cell in group:
            if time.monotonic() > end:
                return
            measure_cell(bench, store, cell, stats)
            done += 1
        log.info("%s: %d of %d cells", bench.subject.name, done, total)


def measure_cell(bench: Bench, store: Store, cell: Cell, stats: object) -> None:
    """Prune, compare with the dense model, keep the result."""
    start = time.monotonic()
    model, plan = bench.prune(cell, stats)  # type: ignore[arg-type]
    damage = bench.damage(model)
    macs = plan.meta["macs"]
    result = {
        "excess_error": damage.excess_error,
        "macs": macs["plan"] / macs["dense"],
        "frechet": None,
        "seconds": round(time.monotonic() - start, 2),
    }
    store.add(cell, result, damage.change.numpy(), damage.power.numpy())


def _calibration(cell: Cell) -> tuple[object, ...]:
    return cell.seed, cell.unstable, cell.stable


def main() -> None:
    """Run, publish or summarise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["run", "publish"])
    parser.add_argument("--summary", action="store_true", help="print the published table")
    parser.add_argument("--models", nargs="+", choices=sorted(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--minutes", type=float, default=180.0, help="stop after this long")
    parser.add_argument(
        "--steps", nargs="+", choices=["facts", "cells", "heads", "recovery"], default=["facts", "cells"]
    )
    parser.add_argument("--criteria", nargs="+", default=None, help="measure the cells of these alone")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    if arguments.what == "run":
        run(arguments.models, arguments.minutes, arguments.steps, arguments.criteria)
    elif arguments.what == "publish":
        publish.publish(Store(WORK), PUBLISHED)
    elif arguments.summary:
        publish.summary(PUBLISHED)
    else:
        parser.error("say run, publish or --summary")


if __name__ == "__main__":
    main()
