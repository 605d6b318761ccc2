"""A recipe: the sections of one experiment, and the rules that span several of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pruning.settings import DIGITS, Calibrate, Data, Evaluate, Export, Model, Prune, Recover, Score
from pruning.settings.rules import matches, within
from pruning.settings.section import Problem, Section, knob, section

DIGITS_FEATURES = "bundled:models/digits-classifier"


@section
class Recipe(Section):
    """One experiment, from the trained model to the report."""

    name: str = knob(
        "unnamed",
        "Name of the experiment and of its run directory.",
        matches(r"[\w][\w.+-]*", "must be letters, digits and . _ + - (it names a folder)"),
    )
    title: str = knob("", "Heading of the report; empty takes `name`.")
    seed: int = knob(0, "Seeds every draw.", within("[0, 2147483648)"))
    device: str = knob(
        "auto",
        "``auto`` (CUDA, else MPS, else CPU) or a torch device.",
        matches(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", "is none of auto, cpu, mps, cuda, cuda:<index>, xpu"),
        neutral=True,
    )
    run_dir: str = knob("runs/${name}", "Where what people open is to be found.", neutral=True)
    store: str | None = knob(
        None, "Where results are kept; null is the folder ``.store`` beside the run directory.", neutral=True
    )
    model: Model = knob(Model, "The denoiser.")
    data: Data = knob(Data, "The images.")
    pipeline: dict[str, Any] = knob(
        dict,
        "Arguments of every call of the model's own pipeline, by the pipeline's names: height, num_frames, "
        "num_inference_steps, guidance_scale, negative_prompt and so on; null takes its default.",
    )
    calibrate: Calibrate = knob(Calibrate, "What the dense model is shown while it is measured, and how.")
    score: Score = knob(Score, "How importance is judged.")
    prune: Prune = knob(Prune, "How much goes, and from where.")
    recover: Recover = knob(Recover, "Training the slim model back.")
    evaluate: Evaluate = knob(Evaluate, "What is measured.")
    export: Export = knob(Export, "What is written for others.")

    @property
    def features(self) -> str:
        """The feature network: the one asked for, else the digits classifier for digits and Inception for all else."""
        given = self.evaluate.features
        if given is not None:
            return given
        return DIGITS_FEATURES if self.data.source == DIGITS else "inception"

    def mismatches(self) -> Iterator[Problem]:
        """Guided rows need a guided sampler, and one criterion; sets of blocks are measured on noised images.

        And the warm-up fits into the steps of earlier rounds.
        """
        warmup, steps = self.recover.warmup_steps, self.prune.earlier_steps
        if self.prune.earlier and warmup is not None and warmup > steps:
            yield (
                "prune.earlier_steps",
                f"{steps} is less than recover.warmup_steps, {warmup}, which counts in earlier rounds, too; ask for "
                "more steps, or a shorter warm-up",
            )
        if self.prune.depth.budget and self.calibrate.provider != "noised":
            yield (
                "prune.depth.budget",
                f"{self.prune.depth.budget} sets of blocks are to be measured, each on the same inputs, but "
                f"calibrate.provider is {self.calibrate.provider!r}; set calibrate.provider=noised",
            )
        if self.score.weighting != "guided":
            return
        if self.prune.candidates > 1:
            yield (
                "prune.candidates",
                f"{self.prune.candidates} plans are to be made, by criteria that read gradients among others, but "
                "score.weighting is 'guided', under which rows alone are seen; leave one of them out",
            )
        if self.calibrate.provider != "sampling":
            yield (
                "score.weighting",
                "'guided' mixes the two branches of guided sampling, but calibrate.provider is "
                f"{self.calibrate.provider!r}; set calibrate.provider=sampling",
            )
        scale = self.calibrate.guidance_scale
        if scale is None or scale <= 1:
            said = "null" if scale is None else scale
            yield (
                "calibrate.guidance_scale",
                f"{said} must be a number above 1 for score.weighting=guided, for at 1 one branch runs",
            )
