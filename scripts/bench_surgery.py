"""Time discover + magnitude score + cut of the UNet of SD 1.5 or SDXL against torch-pruning, on CPU.

    python scripts/bench_surgery.py [--model sdxl] [--repeats 3] [--out docs/benchmarks/surgery.json]

Each side runs in a fresh process, in alternating order, at pruning ratio 0.25 with its stock settings; imports
and model building are not timed. Memory is the peak resident set during the job, reset just before it:
``(dense weights + peak - resident just before) / dense weights``. Weights are random: neither side's time depends
on their values. torch-pruning also cuts the residual width, so it removes more; the parameters left are printed.
The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RATIO = 0.25
DTYPES = {"sd15": "float32", "sdxl": "bfloat16"}
SIDES = {"sd15": 64, "sdxl": 16}
"""Of the latents of the call that torch-pruning traces; small where older CPUs take minutes in bfloat16."""


def build(name: str) -> Any:
    """Return a model with random weights: SD 1.5's UNet in float32, SDXL's in bfloat16."""
    import torch

    from scripts.real_sizes import CONFIGS, class_of

    torch.manual_seed(0)
    return class_of(name)(**CONFIGS[name][1]).to(getattr(torch, DTYPES[name])).eval()


def inputs(name: str) -> dict[str, Any]:
    """Return one call."""
    import torch

    from scripts.real_sizes import call

    return call(name, SIDES[name], getattr(torch, DTYPES[name]), time=0.001)


def run_ours(model: Any) -> None:
    """Discover, score by magnitude, take 25 % of every group, cut."""
    from pruning.groups import find_groups
    from pruning.importance import score
    from pruning.surgery import apply_plan

    groups = find_groups(model, ["attention_heads", "ffn_channels", "resnet_channels"])
    scores = score(dict(model.named_parameters()), groups, criterion="magnitude")
    plan = keep_fraction(groups, scores)
    apply_plan(model, plan, groups)


def keep_fraction(groups: Any, scores: Any) -> Any:
    """Drop the least important quarter of the units of each group, as torch-pruning's pruning_ratio does."""
    from pruning.types import PruningPlan

    kept = {}
    for group in groups:
        stay = group.num_units - int(group.num_units * RATIO)
        kept[group.name] = tuple(sorted(scores.values[group.name].topk(stay).indices.tolist()))
    return PruningPlan(kept=kept)


def run_peer(model: Any, name: str) -> None:
    """Do the same with torch-pruning's stock pruner and group magnitude importance."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    pruner = tp.pruner.BasePruner(
        model,
        inputs(name),  # type: ignore[arg-type]
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=[model.conv_out],
    )
    pruner.step()


def status(key: str) -> int:
    """Return a value of ``/proc/self/status`` in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("memory is read from /proc/self/status, which this system does not have")


def child(side: str, name: str) -> None:
    """Run one side once in this process and print its measurement."""
    model = build(name)
    dense = sum(p.numel() * p.element_size() for p in model.parameters())
    if side == "ours":
        import pruning.allocation
        import pruning.importance
        import pruning.surgery  # noqa: F401
    else:
        import torch_pruning  # noqa: F401  # pyright: ignore[reportMissingImports]
    gc.collect()  # what imports and model building left
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = status("VmRSS")
    start = time.perf_counter()
    run_ours(model) if side == "ours" else run_peer(model, name)
    seconds = time.perf_counter() - start
    memory = (dense + status("VmHWM") - before) / dense
    result = {
        "seconds": seconds,
        "memory": memory,
        "parameters": sum(p.numel() for p in model.parameters()),
        "forward": forward_runs(model, name),
        "reload": reload_is_exact(model),
    }
    print(json.dumps(result))


def forward_runs(model: Any, name: str) -> str:
    """Call the pruned model once."""
    import torch

    try:
        with torch.no_grad():
            output = model(**inputs(name), return_dict=False)[0]
    except Exception as error:
        return f"fails: {type(error).__name__}"
    return "finite" if bool(torch.isfinite(output).all()) else "not finite"


def reload_is_exact(model: Any) -> str:
    """Save, load with plain from_pretrained, and compare every tensor."""
    import torch

    from pruning.hook import install_hook

    install_hook()
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder).state_dict()
        except Exception as error:
            return f"fails: {type(error).__name__}"
    same = all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    return "exact" if same else "differs"


def measure(side: str, name: str) -> dict[str, Any]:
    """Run one side in a fresh process."""
    command = [sys.executable, __file__, "--child", side, "--model", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Alternate both sides and print medians and spread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the full result as JSON")
    parser.add_argument("--model", choices=DTYPES, default="sd15")
    parser.add_argument("--child", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments.model)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for repeat in range(arguments.repeats):
        for side in ("ours", "peer") if repeat % 2 == 0 else ("peer", "ours"):
            runs[side].append(measure(side, arguments.model))
            print(f"{side:5} run {repeat + 1}: " + ", ".join(f"{k} {v}" for k, v in runs[side][-1].items()))
    print(json.dumps(summary(runs, arguments.model, arguments.out)))


def summary(runs: dict[str, list[dict[str, Any]]], name: str, out: Path | None) -> dict[str, Any]:
    """Reduce the runs to medians; write everything to `out`."""
    import diffusers
    import torch

    def median(side: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[side])

    result = {
        "speedup_vs_torch_pruning": median("peer", "seconds") / median("ours", "seconds"),
        "peak_memory_over_weights": median("ours", "memory"),
        "seconds": median("ours", "seconds"),
        "seconds_torch_pruning": median("peer", "seconds"),
        "peak_memory_over_weights_torch_pruning": median("peer", "memory"),
        "parameters": runs["ours"][0]["parameters"],
        "parameters_torch_pruning": runs["peer"][0]["parameters"],
        "forward": runs["ours"][0]["forward"],
        "forward_torch_pruning": runs["peer"][0]["forward"],
        "reload": runs["ours"][0]["reload"],
        "reload_torch_pruning": runs["peer"][0]["reload"],
        "repeats": len(runs["ours"]),
    }
    if out is not None:
        versions = {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        }
        record = {
            **result,
            "runs": runs,
            "threads": torch.get_num_threads(),
            "model": name,
            "dtype": DTYPES[name],
            "device": "cpu",
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**record, "versions": versions}, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
