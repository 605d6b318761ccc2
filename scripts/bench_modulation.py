"""What the low-rank form of modulation layers costs and saves, against truncation that looks at no data.

    python scripts/bench_modulation.py [--samples 128] [--out FILE]

The embedded DiT sees digits at 8 timesteps, with their labels and without; ranks are the smallest that lose at most a
given share of each layer's output variance on held-out digits. Its error is ``||slim - dense||^2 / ||dense||^2`` of the
outputs on held-out digits, others than those that chose the ranks, with a 95 % interval over digits.
The control has the same ranks by truncated singular values of the weights. Then the 44 configurations of public models,
if they are at hand: which share of the parameters modulation layers are, and goes at rank 64. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from bench_calibration import conclude
from torch import Tensor, nn

from eval.intervals import ratio_interval
from pruning.calibration import calibrate
from pruning.data import NoisedBatches
from pruning.groups import find_groups
from pruning.groups.modulation import modulation_layers
from pruning.interface import image_calls
from pruning.models import denoise, load_denoiser, load_scheduler, resolve_source
from pruning.recording.images import noised_images
from pruning.stages.outlook import outlook
from pruning.surgery import RANK_NEEDS, apply_plan, choose_ranks, take_low_rank
from pruning.types import PruningPlan

MODEL = "digits-dit"
ERRORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
BUCKETS = 8
RANK = 64
CONFIGS = Path(__file__).resolve().parents[2] / "shared" / "configs"


class Digits:
    """The model and noised digits.

    Args:
        samples: Digits of each of three sets: to fit, to choose ranks by, to judge.
    """

    def __init__(self, samples: int) -> None:
        self.folder = resolve_source(f"bundled:models/{MODEL}")
        self.model: Any = load_denoiser(self.folder)
        self.samples = samples

    def shown(self, split: str, first: int = 0, *, conditional: bool = True) -> NoisedBatches:
        """Return digits of a split from `first` on."""
        source = image_calls(
            self.model,
            load_scheduler(self.folder),
            "digits",
            split=split,
            images=range(first, first + self.samples),
        )
        return noised_images(
            source, batch_size=64, timestep_buckets=BUCKETS, seed=first, conditional=conditional
        )

    def both(self, split: str, first: int = 0) -> NoisedBatches:
        """Return them with their labels and without."""
        parts = [self.shown(split, first, conditional=known) for known in (True, False)]
        return NoisedBatches.joined(parts)

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return what a model says of the digits that judge it, and which digit each is of."""
        batches = list(self.both("test", self.samples))
        said = torch.cat([denoise(model, batch.call) for batch in batches])
        return said, torch.cat([batch.sample_ids for batch in batches])


def measure(samples: int) -> list[dict[str, Any]]:
    """Return one row for each share that may be lost."""
    digits = Digits(samples)
    model, groups = digits.model, find_groups(digits.model)
    layers = modulation_layers(model, groups)
    fit, held_out = (
        calibrate(model, layers, digits.both(split), needs=RANK_NEEDS) for split in ("train", "test")
    )
    dense, ids = digits.outputs(model)
    rows = []
    for error in ERRORS:
        found = choose_ranks(model, layers, fit, held_out, error)
        forms = {path: form for path, form in found.items() if form is not None}
        ranks = {path: form.rank for path, form in forms.items()}
        slim, blind = copy.deepcopy(model), apply_plan(copy.deepcopy(model), PruningPlan(ranks=ranks))
        take_low_rank(slim, forms)
        rows.append(
            {
                "asked": error,
                "ranks": sorted(ranks.values()),
                "lost_held_out": max(form.lost for form in forms.values()),
                "lost_fitted": max(form.lost_fitted for form in forms.values()),
                "params_ratio": parameters(slim) / parameters(model),
                "excess_error": judged(digits.outputs(slim)[0], dense, ids),
                "excess_error_truncated": judged(digits.outputs(blind)[0], dense, ids),
            }
        )
        print(rows[-1])
    return rows


def parameters(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def judged(said: Tensor, dense: Tensor, ids: Tensor) -> list[float]:
    """Return the excess error, and the ends of its interval."""
    change, power = (x.double().square().flatten(1).sum(1) for x in (said - dense, dense))
    by_digit = [
        torch.zeros(int(ids.max()) + 1, dtype=torch.float64).index_add_(0, ids, x) for x in (change, power)
    ]
    seen = by_digit[1] > 0
    ends = ratio_interval(by_digit[0][seen], by_digit[1][seen])
    assert ends is not None
    return [float(change.sum() / power.sum()), *ends]


def configurations() -> list[dict[str, Any]]:
    """Return for each public configuration how much modulation layers are, and what rank 64 leaves of the model."""
    rows = []
    for path in sorted(CONFIGS.glob("*.json")):
        found, _ = outlook(str(path))
        if found["modulation"] < 0.005:
            continue
        slim, _ = outlook(str(path), modulation_rank=RANK)
        rows.append(
            {
                "config": path.stem,
                "params": found["params"],
                "modulation": found["modulation"],
                "repeated_embedders": found["repeated_embedders"],
                "params_ratio_at_rank": slim["plan"]["params_ratio"],
            }
        )
        print(rows[-1])
    return rows


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {"samples": arguments.samples, "digits": measure(arguments.samples), "rank": RANK}
    conclude(result | {"configurations": configurations()}, arguments.out)


if __name__ == "__main__":
    main()
