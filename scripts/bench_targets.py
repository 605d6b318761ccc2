"""Targets of time and memory on three models: asked, predicted by the table of layers, measured, and the gap.

    python -m scripts.bench_targets [--out FILE.json] [--threads 1] [--models digits dit unet]

The digits DiT that is embedded, and a DiT and a text-conditional UNet with random weights (time does not depend on what
weights hold). Each has its layers timed once; each target is then allocated by that table, carried out on a copy, and
measured in rounds in which the dense model and the slim one take turns (`pruning.stages.targets`, as in a run). On one
thread the clock is the processor time of the thread, which a busy machine disturbs less. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DConditionModel

from eval.latency import device_name
from pruning.allocation import CostModel, LatencyTable, allocate
from pruning.groups import find_groups
from pruning.importance import score
from pruning.models import example_call, load_denoiser, resolve_source
from pruning.settings import Prune, Target
from pruning.stages.layer_times import measure_table
from pruning.stages.targets import Measured, hold, traced_memory
from pruning.types import CalibrationStats, PruningPlan

KINDS = ["attention_heads", "ffn_channels", "resnet_channels"]


def digits() -> ModelMixin:
    """Return the embedded DiT, 2.1 M parameters."""
    return load_denoiser(resolve_source("bundled:models/digits-dit"))


def dit() -> ModelMixin:
    """Return a DiT of 12 blocks of width 512 on 32 x 32 latents (256 tokens)."""
    return DiTTransformer2DModel(
        num_attention_heads=8,
        attention_head_dim=64,
        num_layers=12,
        sample_size=32,
        in_channels=4,
        out_channels=8,
    )


def unet() -> ModelMixin:
    """Return a text-conditional UNet of four levels on 32 x 32 latents."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(128, 256, 384, 512),
        layers_per_block=2,
        cross_attention_dim=512,
        attention_head_dim=8,
    )


MODELS: dict[str, tuple[Callable[[], ModelMixin], int]] = {
    "digits": (digits, 32),
    "dit": (dit, 1),
    "unet": (unet, 1),
}
"""How each is made, and the batch of a timed call."""


def bench(name: str, threads: int) -> dict[str, Any]:
    """Return what was asked, predicted and measured of one model."""
    build, batch = MODELS[name]
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    groups = find_groups(model)
    began = time.perf_counter()
    table = measure_table(model, groups, example_call(model, batch), threads=threads)
    took = time.perf_counter() - began
    cost = CostModel.trace(model, example_call(model, 1), groups)
    cpu = next(model.parameters()).device
    memory = traced_memory(model, groups, cost, example_call(model, 1), dtype=torch.float32, device=cpu)
    chosen = [group for group in groups if group.kind in KINDS]
    scores = score(model, chosen, CalibrationStats(), criterion="magnitude")
    subject = Measured(model, groups, partial(example_call, model), batch, threads)
    dense_gb = memory.total() / 1e9
    asked = [
        Target(latency=0.8),
        Target(latency=0.6),
        Target(memory_gb=0.8 * dense_gb),
        Target(latency=0.7, memory_gb=0.75 * dense_gb),
    ]
    rows = []
    for target in asked:
        settings = Prune(target=target, kinds=KINDS)

        def make(costs: Any, settings: Prune = settings) -> PruningPlan:
            return allocate(chosen, scores, cost, settings, measured=costs)

        plan, first = hold(subject, {"latency": table, "memory": memory}, make)
        macs = plan.meta["macs"]
        rows.append(
            {
                "asked": str(target),
                "targets": plan.meta["targets"],
                "first": first,
                "solver": plan.meta["solver"],
                "macs_ratio": macs["plan"] / macs["dense"],
            }
        )
    return {
        "model": name,
        "params": cost.params(),
        "macs": cost.macs(),
        "batch": batch,
        "dense_ms": 1e3 * table.call_s,
        "table": _about(table, took),
        "rows": rows,
    }


def _about(table: LatencyTable, seconds: float) -> dict[str, Any]:
    return {
        **table.meta,
        "spread": table.spread,
        "beyond": table.beyond,
        "steps": table.steps,
        "seconds": seconds,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the rows of a model as lines of a table."""
    said = []
    for row in found["rows"]:
        for target in row["targets"].values():
            words = target["said"]
            measured = (
                f"{words.get('measured', '–')} ({words['interval']})"
                if "interval" in words
                else words["measured"]
            )
            said.append(
                f"{found['model']:8} {target['asked']:26} {words['predicted']:>16} {measured:>34} {words['gap']:>8}"
                f"  {'binds' if target['binds'] else '':6}{'anew' if row['first'] else ''}"
            )
    return said


def main() -> None:
    """Measure, print a table, and JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began, found = time.perf_counter(), []
    print(f"{'model':8} {'asked':26} {'predicted':>16} {'measured':>34} {'gap':>8}")
    for name in arguments.models:
        found.append(bench(name, arguments.threads))
        print("\n".join(lines(found[-1])), flush=True)
    record = {
        "models": found,
        "threads": arguments.threads,
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "seconds": time.perf_counter() - began,
    }
    line = json.dumps(record)
    if arguments.out:
        arguments.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
