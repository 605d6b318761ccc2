"""Every knob of the project: its default, its meaning and its rules, written here and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pruning.settings.candidates import CANDIDATES
from pruning.settings.protocols import PROTOCOLS
from pruning.settings.rules import above, at_least, matches, one_of, registered, within
from pruning.settings.section import Problem, Section, knob, section

DIGITS = "digits"
"""The source of data that is embedded."""
NO_DATA = "none"
"""The source of data where samples are made from class labels, or from nothing."""
DTYPES = ("float32", "bfloat16", "float16")
WEIGHTINGS = ("off", "on", "permuted", "influence", "influence_permuted", "guided")
LATENCY_MODES = ("eager", "compiled", "cuda_graphs")
COMPENSATIONS = ("none", "fold", "least_squares")
NOISED, SAMPLING, RENOISED = PROVIDERS = ("noised", "sampling", "renoised")
"""What models are shown: images, calls recorded while the pipeline samples, or what it sampled, noised anew."""
MAX_WARMUP = 50
ADAMW, ADAMW_8BIT = OPTIMIZERS = ("adamw", "adamw8bit")
ALL, LORA, FEW = TRAINED = ("all", "lora", "norms_biases_head")
"""What of the slim model is trained."""

_SINK_WEIGHT = within("[-100, 1]", "1 drops sinks, 0 leaves them, -1 doubles them")
_PIPELINE_SAYS = "what ``pipeline`` says, else the default of the model's own pipeline"
_NAMED = matches(r"\s*\S.*", "is empty; name a folder or a hub id")
_REMAINS = within("(0, 1]", "it is the fraction that remains")


@section
class Model(Section):
    """The denoiser that is made slimmer."""

    source: str = knob(
        "bundled:models/digits-dit",
        "``bundled:models/<name>``, a folder (of a pipeline or of a denoiser), a hub id, or, for "
        "``--dry-run`` alone, a bare config ``.json``.",
        matches(r"\s*\S.*", "is empty; name a folder, a hub id or bundled:models/<name>"),
    )
    subfolder: str | None = knob(
        None, "Folder of the denoiser inside `source`; null looks for ``unet/`` and ``transformer/``."
    )
    revision: str | None = knob(None, "Branch, tag or commit on the hub.")
    variant: str | None = knob(None, "Weight variant, e.g. ``fp16``.")
    dtype: str = knob(
        "float32", "Type the weights are held in: float32, bfloat16 or float16.", one_of(*DTYPES)
    )
    start: str | None = knob(
        None,
        "Folder of a slim denoiser of the same class, such as ``recover/model`` of another run, that is cut further in "
        "the place of `source`'s own. That stays the dense model, from which recovery learns and with which evaluation "
        "compares; ``prune.target`` is a share of what is cut.",
    )
    null_class: str = knob(
        "auto",
        'Whether the last class of a `UNet2DModel` stands for "no class": ``last``, ``none``, or ``auto``, which '
        "takes it to be where the data have exactly one class less than the model.",
        one_of("auto", "last", "none"),
    )


@section
class Data(Section):
    """The images, prompts and labels for calibration, recovery and evaluation."""

    source: str = knob(
        DIGITS,
        "``digits`` (embedded), an image folder, a parquet or arrow file or folder, a hub id, a text file of prompts "
        "(``bundled:prompts.txt``, ``bundled:sounds.txt``), or ``none``.",
    )
    split: str = knob("train", "Split that calibration and recovery read.")
    eval_split: str = knob("test", "Held-out split that evaluation reads.")
    resolution: int | None = knob(
        None, "Side of the square images in pixels; null takes the model's own.", at_least(1)
    )
    image_column: str | None = knob(None, "Column of the images; null finds it.")
    label_column: str | None = knob(None, "Column of the class labels; null finds it.")
    caption_column: str | None = knob(None, "Column of the captions; null finds it.")


@section
class SinkWeights(Section):
    """Token weights that follow the sinks: omega_j = 1 - s_j [unstable (1 - phi_j) + stable phi_j].

    s_j is how much key j is a sink, phi_j how stable it is over the timesteps (docs/scores.md section 2). (0, 0) is no
    weighting, (1, 1) drops every sink, (1, 0) the unstable ones, (0, 1) the stable ones, (-1, -1) doubles them.
    """

    unstable: float = knob(
        1.0, "Weight of sinks that move with the timestep; 1 drops them, -1 doubles them.", _SINK_WEIGHT
    )
    stable: float = knob(0.0, "Weight of sinks that stay.", _SINK_WEIGHT)
    alpha: float = knob(4.0, "Steepness of the soft sink indicator.", above(0))
    rho: float | None = knob(
        None,
        "Relative mass at which a key is half a sink; null is the square root of the number of keys.",
        above(0),
    )
    mode: str = knob(
        "ratio",
        "Indicator: ``ratio``: sigmoid(alpha (ln r - ln rho)); ``paper``: sigmoid(alpha (mass - mean - "
        "deviations std)), mass summed over a site's heads and queries (arXiv 2602.17664, released code: "
        "alpha 5, deviations 2); ``hard``: 1 where the head-mean mass exceeds its mean over the keys by more "
        "than epsilon (the paper's figure).",
        one_of("ratio", "paper", "hard"),
    )
    deviations: float = knob(2.0, "Standard deviations above the mean, of the mode ``paper``.")
    epsilon: float = knob(0.05, "Margin of the mode ``hard``.")
    kappa: float = knob(
        1.0,
        "The weighting ``influence`` weighs a row 1 + kappa times what later attention broadcasts of its token.",
        at_least(0),
    )


@section
class Calibrate(Section):
    """What the dense model is shown while it is measured, and how it is measured."""

    num_samples: int = knob(256, "Images, or samples that are generated and recorded.", at_least(1))
    batch_size: int = knob(32, "Samples per forward pass.", at_least(1), neutral=True)
    timestep_buckets: int = knob(
        8, "Equal ranges of timesteps; every sample is shown in each of them.", at_least(1)
    )
    provider: str = knob(
        "noised",
        "``noised`` shows noised images of the data; ``sampling`` records what the model's own pipeline asks of it "
        "while it generates; ``renoised`` noises what it generated anew, at the sampler's own steps.",
        one_of(*PROVIDERS),
    )
    num_steps: int | None = knob(
        None, f"Sampling steps of the ``sampling`` provider; null takes {_PIPELINE_SAYS}.", at_least(1)
    )
    guidance_scale: float | None = knob(
        None,
        f"Guidance of the ``sampling`` provider; null takes {_PIPELINE_SAYS}. With ``score.weighting=guided`` also "
        "how the rows of both branches are mixed.",
        within("[-1e6, 1e6]"),
    )
    queries: int | None = knob(
        None,
        "Attention queries drawn to estimate sinks; null takes all of them (exact). 64 cost less than 5 % of "
        "a UNet's forward at 4,096 tokens.",
        at_least(2),
    )
    rows: int | None = knob(None, "Rows drawn from each layer's input; null takes all of them.", at_least(2))
    checkpointing: bool | None = knob(
        None,
        "Whether gradients are taken with each block run once more in the backward pass, so that no activations but "
        "the blocks' inputs are kept; null does so for models with at least 256 MiB of weights.",
        neutral=True,
    )
    timestep_weights: str = knob(
        "uniform",
        "``uniform``, ``obs_diff`` (1.2 at high noise falling to 0.8, arXiv 2510.06751), or ``sampler``: how much an "
        "error at a timestep moves the image that the model's scheduler makes in `num_steps`.",
        one_of("uniform", "obs_diff", "sampler"),
    )
    criteria: list[str] = knob(
        [],
        "Further criteria to gather statistics for, so that switching to them costs no new pass.",
        registered("criterion"),
    )
    diagnostics: bool = knob(True, "Also gather what the report draws of sinks and heads.")
    sink_weights: SinkWeights = knob(SinkWeights, "How sinks are detected and weighted.")
    memory_gb: float | None = knob(
        None,
        "Memory that the run may hold on its device while it measures, the model's weights included (on a CPU all of "
        "the process, up to 1 GB of which are libraries), in 10^9 bytes; null takes most of what is free. Layers are "
        "measured in as many rounds over the same inputs as fit, and calls have fewer samples where `batch_size` does "
        "not fit; the outcome does not depend on it.",
        within("(0, 1e6]", "it is in GB"),
        neutral=True,
    )

    @property
    def memory(self) -> int | None:
        """`memory_gb` in bytes."""
        return None if self.memory_gb is None else int(self.memory_gb * 1e9)


@section
class Score(Section):
    """How importance is judged."""

    criterion: str = knob(
        "probe_obs", "Name of a criterion; ``sinkprune ls criteria`` lists them.", registered("criterion")
    )
    weighting: str | None = knob(
        None,
        "Rows it reads: plain (``off``), weighted by the sinks (``on``) or, as a control, by the sinks of "
        "other tokens (``permuted``), or by what later attention broadcasts (``influence``, and "
        "``influence_permuted``); or those of both branches of guidance, mixed as the sampler mixes the "
        "outputs (``guided``, with ``calibrate.provider=sampling``); null takes the criterion's own choice.",
        one_of(*WEIGHTINGS),
    )


@section
class Target(Section):
    """How slim the model shall be; where several are given, all of them hold."""

    macs: float | None = knob(
        None, "Fraction of the dense multiply-accumulates that remain; 0.5 is half.", _REMAINS
    )
    params: float | None = knob(None, "Fraction of the dense parameters that remain.", _REMAINS)
    ratio: float | None = knob(
        None,
        "Fraction of the prunable parameters that are removed.",
        within("[0, 1)", "it is the fraction that goes"),
    )
    latency: float | None = knob(
        None,
        "Fraction of the time of a dense call that remains, on the run's device, measured as `evaluate.latency` says "
        "(its `batch_size` and `threads`).",
        _REMAINS,
    )
    latency_ms: float | None = knob(
        None, "The time of such a call in milliseconds.", within("(0, 1e9]", "it is in milliseconds")
    )
    memory_gb: float | None = knob(
        None,
        "Peak of memory of a call of one sample, weights included, in 10^9 bytes.",
        within("(0, 1e6]", "it is in GB"),
    )

    @property
    def given(self) -> dict[str, float]:
        """Those that are given, by name."""
        return {key: value for key, value in vars(self).items() if value is not None}

    @property
    def is_counted_alone(self) -> bool:
        """Whether one of `macs`, `params` and `ratio` is all that is asked."""
        return len(self.given) == 1 and not self.given.keys() & {"latency", "latency_ms", "memory_gb"}

    @property
    def measure(self) -> str:
        """What is counted: ``macs`` or ``params``; of several targets, by the first."""
        return "macs" if self.macs is not None else "params"

    @property
    def measures_time(self) -> bool:
        """Whether time is to be measured."""
        return self.latency is not None or self.latency_ms is not None

    def words(self) -> dict[str, str]:
        """Return each target that is given in words, by its name."""
        said = {
            "macs": "{:g} of the dense MACs",
            "params": "{:g} of the dense parameters",
            "ratio": "pruning ratio {:g}",
            "latency": "{:g} of the dense latency",
            "latency_ms": "{:g} ms a call",
            "memory_gb": "{:g} GB in a call",
        }
        return {key: said[key].format(value) for key, value in self.given.items()}

    def __str__(self) -> str:
        return " and ".join(self.words().values())

    def mismatches(self) -> Iterator[Problem]:
        """At least one must be given."""
        if not self.given:
            yield "", f"at least one of {', '.join(vars(self))} must be given, found none"


@section
class Limit(Section):
    """A bound for some groups."""

    match: str = knob(
        "*", "A kind, or a glob over group and module names; a group obeys every limit that matches it."
    )
    max_ratio: float | None = knob(
        None, "Largest fraction of the group's units that may go; a block is one unit.", within("[0, 1]")
    )
    min_units: int | None = knob(None, "Fewest units that stay.", at_least(1))

    def mismatches(self) -> Iterator[Problem]:
        """It must bound something."""
        if self.max_ratio is None and self.min_units is None:
            yield "", f"limit for {self.match!r} bounds nothing; give max_ratio or min_units"


@section
class Depth(Section):
    """A search that chooses blocks by measuring sets of them together; off unless it has a budget."""

    budget: int = knob(
        0,
        "Most sets of blocks that are measured; 0 is no search: blocks go by the sum of their scores. A set costs as "
        "many forwards as it is shown samples, times ``calibrate.timestep_buckets``.",
        at_least(0),
    )
    samples: int = knob(
        32,
        "Of calibration's images, those that each set is shown, at most, at every timestep bucket.",
        at_least(1),
    )


@section
class Prune(Section):
    """How much goes, from where, and what makes up for it."""

    kinds: list[str] = knob(
        ["attention_heads", "ffn_channels", "resnet_channels"],
        "Kinds of groups that may be cut; ``sinkprune ls kinds`` lists them.",
        registered("group kind"),
    )
    target: Target = knob(Target, "How slim.")
    scope: str = knob(
        "global",
        "``global`` ranks all units against each other; ``local`` takes the same share from every group.",
        one_of("global", "local"),
    )
    round_to: int = knob(
        1, "Kept channels of every group, and ranks of layers, are a multiple of this.", at_least(1)
    )
    min_units: int = knob(1, "Fewest units that stay in a group.", at_least(1))
    limits: list[Limit] = knob([], "Bounds for some groups.")
    per_cost: bool = knob(
        True,
        "Divide each score by the cost that removing the unit frees; scores of which some are negative (``flap``, "
        "``sink_mass``) are compared undivided.",
    )
    depth: Depth = knob(Depth, "Choosing blocks by measuring sets of them.")
    candidates: int = knob(
        1,
        "Plans for the same target that are carried out on a copy of the dense model and measured, the best of which "
        "goes on: other criteria, other ways to rank units and, where `kinds` has blocks, other shares of depth and "
        "width; 1 is the recipe's own plan alone. ``sinkprune ls candidates`` lists them.",
        within(f"[1, {len(CANDIDATES)}]", "so many are known"),
    )
    candidate_samples: int = knob(
        64,
        "Samples, none of which calibration saw, on which each of several plans is measured, at every timestep bucket.",
        at_least(2),
    )
    compensation: str = knob(
        "least_squares",
        "``none``, ``fold`` (the mean goes into the bias) or ``least_squares``.",
        one_of(*COMPENSATIONS),
    )
    ridge: float = knob(
        0.01, "Damping of the least squares as a fraction of the mean squared input.", at_least(0)
    )
    selection: str = knob(
        "one_shot",
        "``one_shot`` judges every layer on what the dense model feeds it; ``block_by_block`` goes through "
        "the model in order and measures each block on what the pruned ones before it feed it, at the cost "
        "of a calibration per block. It keeps the sizes of the plan and chooses anew which units stay.",
        one_of("one_shot", "block_by_block"),
    )
    rounds: int = knob(
        1, "Portions in which ``block_by_block`` cuts a block, measuring before each.", at_least(1)
    )
    modulation_error: float | None = knob(
        None,
        "Give each modulation layer (the linear layer of an adaptive norm) the low-rank form that loses at most this "
        "share of its output's variance on held-out images, where that saves parameters; null keeps them whole.",
        within("(0, 1)", "it is a share of the variance"),
    )
    earlier: list[float] = knob(
        [],
        "Prune, train, prune: targets of earlier rounds in what `target` says (``macs`` or ``params``, shares of the "
        "dense model), falling towards it. In each the model is calibrated, cut and trained for `earlier_steps`, with "
        "the dense model as teacher; the next goes on from there.",
        within("(0, 1)"),
    )
    earlier_steps: int = knob(200, "Optimizer steps in each earlier round.", at_least(1))
    share_embedders: bool = knob(
        False, "Let embedders that every block repeats, weight for weight, be one; what the model says stays."
    )

    def mismatches(self) -> Iterator[Problem]:
        """There must be something to cut, blocks where sets of them are searched, and one shot for several plans."""
        if self.earlier:
            yield from self._rounds()
        if not self.kinds:
            yield "kinds", "is empty; name at least one kind of group"
        elif self.candidates > 1 and self.selection != "one_shot":
            yield (
                "candidates",
                f"{self.candidates} plans are to be measured as they would be cut in one shot, but selection is "
                f"{self.selection!r}, which chooses other units; set selection=one_shot, or leave candidates out",
            )
        elif self.depth.budget and not self.target.is_counted_alone:
            yield (
                "depth.budget",
                f"{self.depth.budget} sets of blocks are to be measured, which is done under one target of macs, "
                f"params or ratio, and the target is {self.target}; leave depth.budget out",
            )
        elif self.depth.budget and "blocks" not in self.kinds:
            yield (
                "depth.budget",
                f"{self.depth.budget} sets of blocks are to be measured, but no blocks may go: kinds is "
                f"{', '.join(self.kinds)}; add blocks to it, or leave depth.budget out",
            )

    def _rounds(self) -> Iterator[Problem]:
        """Earlier rounds have targets of the same kind as the last, each below the one before."""
        if self.target.given.keys() not in ({"macs"}, {"params"}):
            yield (
                "earlier",
                f"{self.earlier} needs one target, of macs or params, and the target is {self.target}",
            )
            return
        (last,) = self.target.given.values()
        goals = [*self.earlier, last]
        if any(after >= before for before, after in itertools.pairwise(goals)):
            yield (
                "earlier",
                f"{self.earlier} must fall from round to round and end above the target, {last:g}",
            )


METHODS = ("whole", "blocks")
"""How a slim model is trained back."""


@section
class Recover(Section):
    """Training the slim model back."""

    enabled: bool = knob(True, "Whether to train at all.")
    method: str | None = knob(
        None,
        "``whole``: the slim model as one. ``blocks``: each cut block by itself, for `steps` steps, to put out what "
        "its dense twin does on the same input, which needs one block in memory and reads neither `distill_weight` nor "
        "`feature_weight` nor `loss_weighting` nor `label_dropout`; null takes ``whole``, and ``blocks`` where the "
        "models do not fit into memory.",
        one_of(*METHODS),
    )
    provider: str | None = knob(
        None,
        "What the slim model is trained on, as in ``calibrate``; null takes what that takes.",
        one_of(*PROVIDERS),
    )
    num_samples: int | None = knob(
        None,
        "Recorded samples to train on, null takes 256; or images with captions, each of which is recorded, null takes "
        "at most 4096. Other images are all trained on.",
        at_least(1),
    )
    train: str = knob(
        ALL,
        "What of it is trained: ``all``; ``lora``: low-rank adapters of its linear and convolution layers, merged into "
        "them at the end; ``norms_biases_head``: vectors, which are norms and biases, and the layers whose output is "
        "the model's. The last two take optimizer memory for what they train alone.",
        one_of(*TRAINED),
    )
    lora_rank: int = knob(16, "Rank of the adapters of ``train: lora``.", at_least(1))
    lora_alpha: float | None = knob(
        None,
        "What adapters are multiplied by, times `lora_rank`; null is `lora_rank`, so that it is 1.",
        above(0),
    )
    steps: int = knob(1000, "Optimizer steps.", at_least(1))
    batch_size: int = knob(
        64, "Images per optimizer step, over all micro-batches and processes.", at_least(1)
    )
    optimizer: str = knob(
        ADAMW,
        "``adamw``, or ``adamw8bit``, whose moments take a quarter of the memory (package bitsandbytes).",
        one_of(*OPTIMIZERS),
    )
    learning_rate: float = knob(2e-4, "Peak learning rate (AdamW).", above(0))
    warmup_steps: int | None = knob(
        None, f"Steps of linear warm-up; null is a tenth of `steps`, at most {MAX_WARMUP}.", at_least(0)
    )
    schedule: str = knob(
        "cosine", "``cosine`` (down to 0) or ``constant`` after the warm-up.", one_of("cosine", "constant")
    )
    weight_decay: float = knob(0.0, "AdamW's, on weights of two or more dimensions.", at_least(0))
    distill_weight: float | None = knob(
        None,
        "Weight of the distance to the dense model's output; the data loss has one minus it; null takes 0.5 where the "
        "data say what to answer, else 1.",
        within("[0, 1]"),
    )
    feature_weight: float = knob(
        0.0,
        "Weight of the distance to what the dense model's blocks put out, relative to its square; it comes on top of "
        "the other two.",
        at_least(0),
    )
    label_dropout: float | None = knob(
        None,
        "Probability that a sample is trained without its label or caption; null takes 0.1 where the model knows "
        '"no label", else 0.',
        within("[0, 1)"),
    )
    ema_decay: float = knob(
        0.995,
        "Decay of the averaged weights, which are the result, reached by the ramp min(decay, (1 + n) / (10 + "
        "n)); 0 is none.",
        within("[0, 1)"),
    )
    ema_lengths: list[float] = knob(
        [],
        "Further averages, each of a length that is a share of the training (the standard deviation of what its steps "
        "count; 0.05 to 0.15 are usual), made at the end from what was kept at every evaluation; of them and the one "
        "of `ema_decay` that of the lowest held-out loss is the result. Needs `eval_every`.",
        within("[0.01, 0.25]"),
    )
    grad_clip: float | None = knob(1.0, "Largest global norm of the gradient; null is no clipping.", above(0))
    loss_weighting: str = knob(
        "uniform", "``uniform`` or ``min_snr`` over timesteps.", one_of("uniform", "min_snr")
    )
    gradient_accumulation: int = knob(1, "Micro-batches per step and process.", at_least(1))
    gradient_checkpointing: bool = knob(
        False,
        "Whether the slim model's blocks run once more in the backward pass, by the model's own method, so that their "
        "activations take no memory meanwhile.",
    )
    mixed_precision: str | None = knob(
        None,
        "``no``, ``bf16`` or ``fp16``; null takes what ``accelerate`` is set to.",
        one_of("no", "bf16", "fp16"),
    )
    eval_every: int = knob(
        0,
        "Steps between evaluations: the loss on held-out samples, from fixed noise with the averaged weights, before "
        "the first step, every so many, and after the last; 0 is none.",
        at_least(0),
    )
    held_out: int | None = knob(
        None,
        "Samples that are held out of training for evaluations; null takes a tenth, at most 64.",
        at_least(1),
    )
    early_stop: int | None = knob(
        None,
        "Evaluations without a lower loss, after the warm-up, after which training ends; the result are the weights of "
        "the lowest. null trains to the end and takes the last.",
        at_least(1),
    )
    validation_images: int = knob(
        0,
        "Samples that the slim model makes at every evaluation, from the noise of ``evaluate``'s first ones, for the "
        "report.",
        at_least(0),
    )
    tracker: str | None = knob(
        None,
        "Who is told of every step, through accelerate: ``tensorboard`` (files in ``logs/`` of the run directory), "
        "``wandb`` or ``trackio``; null is nobody.",
        one_of("tensorboard", "wandb", "trackio"),
        neutral=True,
    )
    checkpoint_every: int = knob(
        500, "Steps between checkpoints to resume from; 0 is only at the end.", at_least(0), neutral=True
    )
    keep_checkpoints: int = knob(1, "Newest checkpoints that stay.", at_least(1), neutral=True)
    max_seconds: float | None = knob(
        None, "Training ends after this long, resumed time included; null is no limit.", above(0)
    )

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up, with null resolved."""
        return min(MAX_WARMUP, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    def mismatches(self) -> Iterator[Problem]:
        """The warm-up fits into the steps, all samples have numbers, and there are evaluations for what needs them."""
        if self.warmup > self.steps:
            yield "warmup_steps", f"{self.warmup_steps} is more than steps, {self.steps}"
        if self.steps * self.batch_size >= 2**32:
            yield "steps", f"{self.steps} times batch_size {self.batch_size} must be less than 2^32 images"
        for key in ("held_out", "early_stop", "validation_images", "ema_lengths"):
            if getattr(self, key) and not self.eval_every:
                yield key, f"{getattr(self, key)} needs evaluations; set eval_every, or leave it out"


@section
class Latency(Section):
    """How latency is measured."""

    batch_size: int = knob(32, "Samples per denoiser call.", at_least(1))
    runs: int = knob(15, "Rounds of one call; every model is timed once per round, in turns.", at_least(1))
    sampling_runs: int = knob(6, "Rounds of a whole sampling run; 0 leaves it out.", at_least(0))
    threads: int | None = knob(None, "CPU threads; null takes what torch would.", at_least(1))
    modes: list[str] = knob(
        ["eager"],
        "How calls are made, each a row of the results: ``eager``, ``compiled`` (`torch.compile`) and ``cuda_graphs``; "
        "one that cannot be had on the machine is left out, with the reason.",
        one_of(*LATENCY_MODES),
    )
    batch_sizes: list[int] = knob(
        [], "Further batch sizes of one call, each a row of the results in every mode.", at_least(1)
    )

    def mismatches(self) -> Iterator[Problem]:
        """No mode is named twice."""
        yield from _twice("modes", self.modes)


@section
class Networks(Section):
    """The networks that metrics name for themselves; each is fetched when a metric needs it."""

    dinov2: str = knob(
        "facebook/dinov2-large",
        "DINOv2 of ``fd_dinov2``: a hub id or a local folder of transformers; only the default is called FD-DINOv2.",
        _NAMED,
    )
    cmmd: str = knob(
        "openai/clip-vit-large-patch14-336",
        "CLIP of ``cmmd``: a hub id or a local folder of transformers; only the default is called CMMD.",
        _NAMED,
    )
    clip: str = knob(
        "openai/clip-vit-large-patch14",
        "CLIP of ``clip_score``: a hub id or a local folder of transformers with its processor and tokenizer.",
        _NAMED,
    )
    lpips: str = knob(
        "alex",
        "Network of ``lpips``: ``alex``, ``vgg`` or ``squeeze`` (downloaded), or one of them with a file of its "
        "torchvision weights, ``alex:/path/to/alexnet-owt-7be5be79.pth``.",
        matches(
            r"(alex|vgg|squeeze)(:.+)?",
            "is none of alex, vgg, squeeze, alex:<file>, vgg:<file>, squeeze:<file>",
        ),
    )


@section
class Evaluate(Section):
    """What is measured on dense, pruned and recovered."""

    protocol: str | None = knob(
        None,
        f"Named protocol, one of {', '.join(PROTOCOLS)}; it fills the knobs of this section that are not given. Null "
        "is none.",
        one_of(*PROTOCOLS),
        neutral=True,
    )
    num_samples: int = knob(1000, "Samples that each model makes.", at_least(2))
    num_steps: int | None = knob(None, f"Sampling steps; null takes {_PIPELINE_SAYS}.", at_least(1))
    sampler: str | None = knob(
        None,
        "Scheduler class of diffusers to sample with, e.g. ``DDIMScheduler``; null takes the model's own.",
    )
    batch_size: int = knob(
        100,
        "Samples made at a time, where the pipeline may make several in one call.",
        at_least(1),
        neutral=True,
    )
    guidance_scale: float | None = knob(None, f"Guidance; null takes {_PIPELINE_SAYS}.")
    features: str | None = knob(
        None,
        "Feature network of the distances: ``bundled:models/<classifier>`` or a folder of such a classifier, "
        "``inception`` (downloaded), or ``inception:<file>`` with its weights; null takes the digits "
        "classifier for the digits and ``inception`` for all other data.",
    )
    networks: Networks = knob(Networks, "Networks that metrics name for themselves.")
    num_real: int | None = knob(
        None, "Held-out images that the distances compare with; null takes all.", at_least(2)
    )
    denoising_samples: int = knob(
        256, "Held-out images, at most, on which the denoising error is measured.", at_least(1)
    )
    metrics: list[str] = knob(
        ["fid", "kid", "pairs", "consistency", "denoising", "cost", "latency"],
        "Names of metrics; ``sinkprune ls metrics`` lists them.",
    )
    latency: Latency = knob(Latency, "How latency is measured.")

    def mismatches(self) -> Iterator[Problem]:
        """No metric is named twice."""
        yield from _twice("metrics", self.metrics)


@section
class Export(Section):
    """What is written for others."""

    formats: list[str] = knob(["diffusers"], "Exporters to run.", registered("exporter"))
    dtype: str = knob(
        "bfloat16", "Type of the written weights: float32, bfloat16 or float16.", one_of(*DTYPES)
    )
    max_shard_size: str = knob(
        "10GB",
        "Largest weights file, e.g. ``10GB``.",
        matches(
            r"0*[1-9]\d*(\.\d+)?\s*[KMGT]B|0*\.\d*[1-9]\d*\s*[KMGT]B",
            "is no size above zero; write e.g. 500MB or 10GB",
        ),
    )

    def mismatches(self) -> Iterator[Problem]:
        """No format is named twice."""
        yield from _twice("formats", self.formats)


def _twice(key: str, names: list[str]) -> Iterator[Problem]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield key, f"names {', '.join(twice)} more than once; name each once"
