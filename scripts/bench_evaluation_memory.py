"""Peak memory of an evaluation with few and with many samples: looking at models, and every metric by itself.

    python scripts/bench_evaluation_memory.py [--counts 500 50000] [--work FOLDER] [--out FILE]

A made-up dense and a slim model draw images of 3 x 16 x 16, as many as there are real ones; features are 48 means of
patches. All goes through `eval.run.look` into files, batch by batch, and each metric reads them in a process of its own
(a fork of one that has imported what they need, and done nothing else).
Measured is the anonymous memory of the process (``RssAnon``, polled) at its peak, above that after the imports. Pages
of files that were read are told besides: they are in memory as long as nobody else wants it. The networks of LPIPS and
the CLIP score are stand-ins: it is the code around them that is measured. With --work the same command goes on where it
was stopped.
The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

METRICS = (
    "fid",
    "fd_dinov2",
    "fid_infinity",
    "kid",
    "pairs",
    "consistency",
    "lpips",
    "clip_score",
    "denoising",
    "cmmd",
    "precision_recall",
)
LOOK = "look"
SIDE, BATCH = 16, 50
POLL_SECONDS = 0.002


# What is looked at.


def context(count: int) -> Any:
    """Return models, data and networks that are made up."""
    import torch
    from torch import Tensor, nn

    from eval.features import load_features
    from eval.networks import PairNetwork, TextNetwork
    from eval.observation import Rows, parts_of
    from eval.types import Context, Noised, Subject

    class Patches(nn.Module):
        """Means of 4 x 4 patches: 48 features."""

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)

    def images(ids: Tensor, shift: int) -> Tensor:
        draws = torch.Generator().manual_seed(int(ids[0]))
        found = torch.randint(256, (len(ids), 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
        return (found >> 1) + shift * ids[:, None, None, None].remainder(2).byte()

    def noised() -> Iterator[Noised]:
        for part in parts_of(count, BATCH):
            ids = torch.tensor(part)
            x = images(ids, 1).float() / 255
            yield Noised({"sample": x}, x, 0, ids)

    def vectors(rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows, dim=1)

    parts = parts_of(count, BATCH)
    features = load_features(Patches())
    texts = TextNetwork(
        "stand-in",
        "none",
        lambda seen: vectors(Patches()(seen)),
        lambda said: vectors(torch.ones(len(said), 48)),
        "",
    )
    pair = PairNetwork(
        "stand-in",
        "none",
        torch.device("cpu"),
        lambda a, b: (a.float() - b.float()).square().flatten(1).mean(1),
        "",
    )
    subjects = {
        name: Subject(
            predict=lambda call, scale=1 + shift / 10: call["sample"] * scale,
            sample=lambda ids, shift=shift: images(ids, shift),
        )
        for shift, name in enumerate(("dense", "slim"))
    }
    return Context(
        subjects,
        real=lambda: Rows(
            [*map(len, parts)], lambda numbers: (images(torch.tensor(parts[k]), 2) for k in numbers)
        ),
        noised=noised,
        features=lambda: features,
        networks={
            "dinov2": lambda: features,
            "cmmd": lambda: features,
            "clip": lambda: texts,
            "lpips": lambda: pair,
        },
        prompts=lambda ids: ["a"] * len(ids),
        num_samples=count,
        batch_size=BATCH,
    )


def look_at_all(count: int, folder: Path) -> None:
    """Write all that the metrics read, batch by batch, as a run does."""
    from eval.run import look, observations
    from eval.types import DATA

    made_up = context(count)
    for name in (DATA, *made_up.subjects):
        place, seen = folder / name, {}
        place.mkdir()
        for what in observations(METRICS, name):
            seen[what] = look(made_up, name, what, seen, place, batches=folder / "batches" / name / what)


def compute(metric: str, count: int, folder: Path) -> None:
    """Compute one metric from the files."""
    from eval.observation import Observation
    from eval.run import measure_all, observations
    from eval.types import DATA

    made_up = context(count)
    seen = {
        name: {what: Observation.load(folder / name, what) for what in observations([metric], name)}
        for name in (DATA, *made_up.subjects)
    }
    measure_all(made_up, [metric], seen=seen)


# How it is measured.


def resident() -> dict[str, int]:
    """Return the bytes of this process that are in memory: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return {"own": found["RssAnon"], "files": found["RssFile"]}


def watched(work: Callable[[], None]) -> dict[str, Any]:
    """Do the work; return its seconds and by how much memory grew at its peak."""
    import torch

    torch.linalg.eigvalsh(
        torch.eye(64).double() @ torch.eye(64).double()
    )  # what libraries keep for themselves
    before, peak, ended = resident(), resident(), threading.Event()

    def poll() -> None:
        while not ended.is_set():
            now = resident()
            for key in peak:
                peak[key] = max(peak[key], now[key])
            time.sleep(POLL_SECONDS)

    thread = threading.Thread(target=poll)
    thread.start()
    began = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - began
        ended.set()
        thread.join()
    grown = {key: peak[key] - before[key] for key in peak}
    return {"own_mb": grown["own"] / 1e6, "file_pages_mb": grown["files"] / 1e6, "seconds": round(seconds, 2)}


def measured(step: str, count: int, folder: Path) -> dict[str, Any]:
    """Run one step in a process of its own."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def run() -> None:
        if step == LOOK:
            theirs.send(watched(lambda: look_at_all(count, folder)))
        else:
            theirs.send(watched(lambda: compute(step, count, folder)))

    process = fork.Process(target=run)
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError as error:
        raise SystemExit(f"{step} of {count} samples failed") from error
    process.join()
    print(
        f"{count:6} {step:16} {found['own_mb']:8.1f} MB, {found['file_pages_mb']:8.1f} MB of files, "
        f"{found['seconds']:.1f} s",
        flush=True,
    )
    return found


def measured_steps(counts: list[int], metrics: Sequence[str], work: Path) -> dict[str, dict[str, Any]]:
    """Measure every step at every count, but what is known from an earlier start; cheap steps of all counts first."""
    note = work / "steps.json"
    known: dict[str, dict[str, Any]] = json.loads(note.read_text()) if note.exists() else {}
    for step in (LOOK, *metrics):
        for count in counts:
            folder = work / str(count)
            if str(count) in known.get(step, {}):
                continue
            if step == LOOK:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            known.setdefault(step, {})[str(count)] = measured(step, count, folder)
            note.write_text(json.dumps(known))
    return known


def main() -> None:
    """Measure every step at every count; write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 50_000])
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--work", type=Path, help="keep what is made here, and go on from there")
    parser.add_argument("--out", type=Path, help="write the last line here, too")
    arguments = parser.parse_args()
    import torch

    for name in (*METRICS, "networks", "run"):
        importlib.import_module(f"eval.{name}")
    for name in ("torchmetrics.image.fid", "torchmetrics.image.kid", "torchmetrics.functional.image"):
        importlib.import_module(name)

    with tempfile.TemporaryDirectory() as temporary:
        steps = measured_steps(arguments.counts, arguments.metrics, arguments.work or Path(temporary))
    record = {
        "images": [3, SIDE, SIDE],
        "features": 48,
        "batch_size": BATCH,
        "real_images": "as many as samples",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": steps,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
