"""Calibrate, score, plan, compensate and cut models of real size within a memory budget, on the CPU.

    python -m scripts.bench_memory [--models sd15 sdxl flux12b] [--work FOLDER] [--out docs/benchmarks/memory.json]

Weights are random and written to disk first, the Flux-shaped model's 24 GB piece by piece; two samples are shown at two
timesteps each, to the Flux-shaped model at one. Every model is a process of its own, whose peak is the largest resident
set that the kernel saw (``ru_maxrss``), weights that are mapped from files included. SD 1.5 has its weights in float32,
the others in bfloat16; all are run in float32, which weights are widened to while they are read (older CPUs are ten
times as slow in bfloat16).
A killed run goes on with the rounds, scores and shards that are missing when the same command is given with the same
--work. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.real_sizes import CONFIGS, call, class_of

RATIO = 0.3
SAMPLES = 2


@dataclass(frozen=True)
class Subject:
    """How a model is measured.

    Attributes:
        dtype: Of its weights as they are stored.
        budget: Bytes that the calibration may hold.
        allowed: GB that the process may hold at its peak.
        side: Of the latents.
        steps: Timesteps at which every sample is shown.
        together: Whether all samples are shown in one call.
    """

    dtype: str
    budget: float
    allowed: float
    side: int
    steps: int = 2
    together: bool = False


SUBJECTS = {
    "sd15": Subject("float32", 7.2e9, 8, 64),
    "sdxl": Subject("bfloat16", 9e9, 10, 64),
    "flux12b": Subject("bfloat16", 7.6e9, 8, 16, steps=1, together=True),
}


# What is shown.


def batches(name: str) -> list[Any]:
    """Return the batches: a call for each timestep and sample, or for each timestep."""
    import torch

    from pruning.data.batches import NoisedBatch

    subject, found = SUBJECTS[name], []
    for step in range(subject.steps):
        time = (step + 0.5) / subject.steps
        calls = [call(name, subject.side, torch.float32, time=time, seed=one) for one in range(SAMPLES)]
        ids = [torch.tensor([one]) for one in range(SAMPLES)]
        if subject.together:
            whole = {key: torch.cat([one[key] for one in calls]) for key in calls[0]}
            shared = {key: value for key, value in calls[0].items() if key.endswith("_ids")}  # of places
            calls, ids = [whole | shared], [torch.arange(SAMPLES)]
        for one, who in zip(calls, ids, strict=True):
            found.append(NoisedBatch(one, None, step, who, torch.full((len(who),), time * 1000)))
    return found


def source(name: str) -> Any:
    """Return what is shown, as the toolkit takes it."""
    from pruning.data.batches import NoisedBatches

    shown = batches(name)
    rows = sum(len(batch.sample_ids) for batch in shown)
    return NoisedBatches(lambda: iter(shown), 1000, SUBJECTS[name].steps, has_targets=False, rows=rows)


# The model on disk.


def write_random(name: str, folder: Path) -> None:
    """Write a model with random weights, a tensor at a time: as large as layers are initialised, norms of ones."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    from pruning.surgery.tensor_files import InPieces, write_in_pieces

    with torch.device("meta"):
        model = class_of(name)(**CONFIGS[name][1])
    dtype = getattr(torch, SUBJECTS[name].dtype)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    print(f"{name}: {sum(t.numel() for t in state.values()) / 1e9:.2f} B parameters", flush=True)

    def values(name: str, shape: tuple[int, ...]) -> Iterator[Any]:
        g = torch.Generator().manual_seed(sum(name.encode()))
        if len(shape) < 2:
            yield torch.full(shape, float("norm" in name and name.endswith("weight"))).to(dtype)
            return
        scale = torch.Size(shape[1:]).numel() ** -0.5
        for start in range(0, shape[0], 256):
            rows = min(256, shape[0] - start)
            yield (scale * torch.randn(rows, *shape[1:], generator=g)).to(dtype)

    split = split_torch_state_dict_into_shards(
        state, filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size="5GB"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            shape = tuple(state[name].shape)
            tensors[name] = InPieces(shape, dtype, lambda name=name, shape=shape: values(name, shape))
        for _ in write_in_pieces(folder / file, tensors):
            pass
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    model.save_config(folder)
    (folder / "DONE").touch()


# The job.


def job(name: str, work: Path) -> dict[str, Any]:
    """Do everything with one model; returns what was measured."""
    import torch

    from pruning import models
    from pruning.allocation import CostModel, allocate
    from pruning.calibration import calibrate, first_pass
    from pruning.calibration.gradients import Gradients
    from pruning.calibration.rounds import Rounds
    from pruning.groups import find_groups
    from pruning.importance import score
    from pruning.models.widening import borrowed
    from pruning.on_demand import TensorFiles
    from pruning.settings import Calibrate, Prune, Target
    from pruning.surgery import compensate, cut_on_disk, needs_for
    from pruning.surgery.changes import Changes
    from pruning.types import PruningPlan, config_hash

    subject, dense = SUBJECTS[name], work / name / "dense"
    seconds: dict[str, float] = {}
    forwards, backwards = [0], [0]

    def timed(what: str, since: float) -> float:
        now = time.perf_counter()
        seconds[what] = round(now - since, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(f"{name}: {what} {seconds[what]:.0f} s, peak so far {peak:.2f} GB", flush=True)
        return now

    model = models.map_denoiser(dense)
    models.stream(model, dtype=torch.float32)
    model.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    told = Gradients.backward

    def backward(self: Any, *args: Any, **kwargs: Any) -> None:
        backwards[0] += 1
        told(self, *args, **kwargs)

    Gradients.backward = backward  # type: ignore[method-assign]
    kinds = Prune().kinds
    groups = [group for group in find_groups(model) if group.kind in kinds and group.kind != "blocks"]
    meta = models.load_meta_denoiser(dense)
    all_groups = find_groups(meta)
    prune = Prune(target=Target(ratio=RATIO), kinds=[kind for kind in kinds if kind != "blocks"])
    needs, _ = needs_for(["probe_obs", prune.compensation], groups)
    shown, rounds = source(name), []

    def announce(found: Rounds) -> None:
        rounds.append(len(found.groups))
        print(f"{name}: {found}", flush=True)

    began = time.perf_counter()
    settings = Calibrate(timestep_buckets=subject.steps)
    seen = first_pass(model, groups, shown, settings=settings, stability=False, memory=int(subject.budget))
    began = timed("first_pass", began)
    stats = calibrate(
        model,
        groups,
        shown,
        needs=needs,
        settings=settings,
        first_pass=seen,
        memory=int(subject.budget),
        folder=work / name / "stats",
        announce=announce,
    )
    began = timed("calibrate", began)
    weights = borrowed(model)
    room = int(subject.budget - 1.5e9)
    known = TensorFiles(work / name / "scores", "scores")
    scores = score(weights, groups, stats, criterion="probe_obs", memory=room, known=known)
    began = timed("score", began)
    cost = CostModel.trace(meta, models.example_call(meta, 1), all_groups)
    start = PruningPlan(base_hash=config_hash(meta.config))
    plan = allocate(groups, scores, cost, prune, start=start)
    began = timed("plan", began)
    changes = Changes(weights, work / name / "changed")
    report = compensate(
        changes, all_groups, plan, stats, prune.compensation, prune.ridge, model=meta, memory=room
    )
    began = timed("compensate", began)
    shutil.rmtree(work / name / "stats")  # so that the disk has room for dense and slim
    shutil.rmtree(work / name / "slim", ignore_errors=True)
    written = cut_on_disk(dense, plan, work / name / "slim", changed=changes.changed)
    timed("cut", began)
    slim = models.map_denoiser(work / name / "slim")
    models.stream(slim, dtype=torch.float32)
    with torch.no_grad():
        output = models.first_answer(slim, batches(name)[0].call)
    assert bool(output.isfinite().all())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    shown_calls = len(batches(name))
    return {
        "params": written.dense_params,
        "params_left": written.params,
        "groups": len(groups),
        "compensated": len(report),
        "peak_gb": round(peak, 3),
        "allowed_gb": subject.allowed,
        "rounds": rounds[-1] if rounds else None,
        "forwards": forwards[0] - 1,
        "passes": round((forwards[0] - 1) / shown_calls, 2),
        "backward_passes": round(backwards[0] / shown_calls, 2),
        "seconds": seconds,
    }


def main() -> None:
    """Run every model in a process of its own."""
    parser = argparse.ArgumentParser(
        description="Calibrate, score, compensate and cut models of real size within a memory budget."
    )
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=[*SUBJECTS])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench-memory"), help="where models lie meanwhile"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep what was made of a model when it is done")
    parser.add_argument("--write", choices=SUBJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=SUBJECTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        return write_random(arguments.write, arguments.work / arguments.write / "dense")
    if arguments.job:
        return print(json.dumps(job(arguments.job, arguments.work)))
    found: dict[str, Any] = {}
    for name in arguments.models:
        command = [sys.executable, "-m", "scripts.bench_memory", "--work", str(arguments.work)]
        if not (arguments.work / name / "dense" / "DONE").is_file():
            subprocess.run([*command, "--write", name], check=True)
        with subprocess.Popen([*command, "--job", name], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
        if process.returncode:
            raise SystemExit(f"{name}: the process ended with {process.returncode}")
        found[name] = json.loads(lines[-1])
        if not arguments.keep:
            shutil.rmtree(arguments.work / name)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    last = {f"{name}_peak_gb": found[name]["peak_gb"] for name in found}
    rounds = {name: found[name]["rounds"] for name in found}
    print(json.dumps({**last, "rounds": rounds, "passes": {name: found[name]["passes"] for name in found}}))


if __name__ == "__main__":
    main()
