"""What each named protocol of evaluation tells apart, and the size that 1 % takes, scaled from finished runs.

    sinkprune run quickstart evaluate.metrics='[fid,kid,precision_recall,pairs,consistency,denoising]'
    python scripts/protocol_sizes.py "digits DiT=runs/quickstart" [NAME=RUN …] [--out FILE]

A run says of each measure the size at which a paired difference of its pruned or recovered model to the dense one would
show at 1 % (`eval.power`). A standard error falls as one over the root of the size: at the size N of a protocol a ratio
shows from ``1.01^sqrt(size / N)`` on, a difference from ``sqrt(size / N)`` per cent on. Prints a table in Markdown and
one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.power import WANTED
from pruning.settings import Evaluate
from pruning.settings.protocols import PROTOCOLS

MEASURES = {
    "fid": ("frechet",),
    "kid": ("kernel",),
    "precision_recall": ("precision", "recall", "density", "coverage"),
    "cmmd": ("cmmd",),
    "clip_score": ("clip_score",),
    "pairs": ("pair_pixels", "pair_features"),
    "consistency": ("mse",),
    "denoising": ("denoising_error_mean", "excess_error"),
}
"""What each metric says the power of."""
KEYS = [key for keys in MEASURES.values() for key in keys]
DIFFERENCES = ("kernel", "cmmd", "pair_pixels", "pair_features", "mse", "excess_error")
"""Measures that are compared by difference; the others are by ratio, on a log scale."""
OF_HELD_OUT, OF_REAL = ("denoising_error_mean", "excess_error"), ("recall", "coverage")
"""Measures whose size is not that of the samples: held-out images, and real ones."""


def sizes_of(run: Path) -> dict[str, dict[str, int]]:
    """Return for each model but the dense one the size that 1 % takes of each measure."""
    subjects = json.loads((run / "evaluate" / "metrics.json").read_text())
    return {
        name: {key: values[f"{key}_size_1pct"] for key in KEYS if values.get(f"{key}_size_1pct")}
        for name, values in list(subjects.items())[1:]
    }


def told_apart(key: str, size: int, count: int) -> float:
    """Return the smallest difference that `count` samples show, as a share."""
    errors = math.sqrt(size / count)
    return WANTED * errors if key in DIFFERENCES else (1 + WANTED) ** errors - 1


def rows_of(models: dict[str, dict[str, int]]) -> Iterator[dict[str, Any]]:
    """Yield for each measure what the models say of it: the size for 1 %, and what each protocol tells apart."""
    for metric, keys in MEASURES.items():
        for key in keys:
            counts = {}
            for name, protocol in PROTOCOLS.items():
                section = {**vars(Evaluate()), **protocol.knobs}
                of_real = key in OF_REAL and section["num_real"] is None  # as many as the data have
                if metric in section["metrics"] and not of_real:
                    counts[name] = section["denoising_samples" if key in OF_HELD_OUT else "num_samples"]
            found = {name: sizes[key] for name, sizes in models.items() if key in sizes}
            apart = {
                protocol: {name: told_apart(key, size, count) for name, size in found.items()}
                for protocol, count in counts.items()
            }
            yield {"measure": key, "size_1pct": found, "protocols": counts, "told_apart": apart}


def table(rows: list[dict[str, Any]], models: list[str]) -> Iterator[str]:
    """Yield the lines of a table in Markdown; values of several models stand side by side."""
    yield f"| measure | size for 1 %: {' / '.join(models)} | {' | '.join(f'`{name}`' for name in PROTOCOLS)} |"
    yield "|" + "---|" * (2 + len(PROTOCOLS))
    for row in rows:
        if not row["size_1pct"]:
            continue
        cells = [f"`{row['measure']}`", " / ".join(_count(row["size_1pct"].get(name)) for name in models)]
        for protocol in PROTOCOLS:
            said = row["told_apart"].get(protocol)
            shares = [] if said is None else [_share(said.get(name)) for name in models]
            cells.append(f"{' / '.join(shares)} at {row['protocols'][protocol]:,}" if shares else "")
        yield f"| {' | '.join(cells)} |"


def _count(size: int | None) -> str:
    return "–" if size is None else f"{size:,}"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2g} %"


def main() -> None:
    """Read runs, print the table, and write what it is made of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    named = dict(one.rsplit("=", 1) for one in arguments.runs)
    models = {
        f"{name}, {model}": sizes
        for name, run in named.items()
        for model, sizes in sizes_of(Path(run)).items()
    }
    rows = list(rows_of(models))
    print("\n".join(table(rows, list(models))))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
