"""Run the quickstart recipe with everything made small, and check that each artefact is there; figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = (
    "calibrate.num_samples=32",
    "recover.steps=4",
    "recover.warmup_steps=1",
    "evaluate.num_samples=72",
    "evaluate.num_steps=2",
    "evaluate.latency.runs=3",
)
FIELDS = (
    "frechet_dense",
    "frechet_pruned",
    "frechet_recovered",
    "macs_ratio",
    "latency_speedup",
    "params_ratio",
    "file_bytes_dense",
    "file_bytes_pruned",
    "seconds",
)
COMMAND = (sys.executable, "-m", "pruning", "run", "quickstart")


def main() -> None:
    """Run it twice (the second time everything is reused) and look at what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "smoke"
        for _ in range(2):
            done = subprocess.run(
                [*COMMAND, *SMALL, f"run_dir={run}", "--json"], capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"the quickstart failed:\n{done.stdout}\n{done.stderr}")
        summary = json.loads((run / "summary.json").read_text())
        wrong = [field for field in FIELDS if not isinstance(summary.get(field), int | float)]
        if wrong:
            raise SystemExit(f"summary.json lacks numbers for {', '.join(wrong)}")
        [page] = (run / "report").glob("*.html")
        if len(page.read_text()) < 20_000:
            raise SystemExit(f"{page.name} is suspiciously short")
        [config] = (run / "export").glob("**/transformer/config.json")
        if "_structured_pruning" not in json.loads(config.read_text()):
            raise SystemExit("the exported model is not pruned")
        print(
            f"quickstart smoke: macs_ratio {summary['macs_ratio']:.3f}, report and export written, reuse works"
        )


if __name__ == "__main__":
    main()
