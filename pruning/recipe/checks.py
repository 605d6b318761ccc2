"""Do the values of a recipe make sense? Everything that can be known without the model or the data."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pruning.recipe.schema import Recipe

Problem = tuple[str, str]
"""A key path and what is wrong with its value."""

DTYPES = ("float32", "bfloat16", "float16")


def value_problems(recipe: Recipe) -> list[Problem]:
    """Return every value that makes no sense, in the order of the sections; NaN and infinity come first."""
    if infinite := list(_not_finite(recipe, "")):
        return infinite
    sections = (_general, _calibrate, _score, _prune, _recover, _evaluate, _export)
    return [problem for section in sections for problem in section(recipe)]


def _not_finite(section: Any, prefix: str) -> Iterator[Problem]:
    """Yield every NaN and infinity in a section and the sections and lists inside it."""
    fields = vars(section).items() if dataclasses.is_dataclass(section) else enumerate(section)
    for key, value in fields:
        path = f"{prefix}[{key}]" if isinstance(key, int) else f"{prefix}.{key}".lstrip(".")
        if dataclasses.is_dataclass(value) or isinstance(value, list):
            yield from _not_finite(value, path)
        elif isinstance(value, float) and not math.isfinite(value):
            yield path, f"{value} must be a finite number"


def _general(recipe: Recipe) -> Iterator[Problem]:
    if not re.fullmatch(r"[\w][\w.+-]*", recipe.name):
        yield "name", f"{recipe.name!r} must be letters, digits and . _ + - (it names a folder)"
    if not 0 <= recipe.seed < 2**31:
        yield "seed", f"{recipe.seed} is not in [0, 2**31)"
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", recipe.device):
        yield "device", f"{recipe.device!r} is none of auto, cpu, mps, cuda, cuda:<index>, xpu"
    if not recipe.model.source:
        yield "model.source", "is empty; name a folder, a hub id or bundled:models/<name>"
    yield from _one_of("model.dtype", recipe.model.dtype, DTYPES)
    if recipe.data.resolution is not None:
        yield from _at_least("data.resolution", recipe.data.resolution, 1)


def _calibrate(recipe: Recipe) -> Iterator[Problem]:
    section = recipe.calibrate
    for key in ("num_samples", "batch_size", "timestep_buckets", "num_steps"):
        yield from _at_least(f"calibrate.{key}", getattr(section, key), 1)
    for key in ("queries", "rows"):
        if getattr(section, key) is not None:
            yield from _at_least(f"calibrate.{key}", getattr(section, key), 2)
    yield from _one_of("calibrate.provider", section.provider, ("noised", "sampling"))
    yield from _one_of(
        "calibrate.timestep_weights", section.timestep_weights, ("uniform", "obs_diff", "sampler")
    )
    for name in section.criteria:
        yield from _criterion("calibrate.criteria", name)
    if section.omega.alpha <= 0:
        yield "calibrate.omega.alpha", f"{section.omega.alpha} must be > 0"
    if section.omega.rho is not None and section.omega.rho <= 0:
        yield (
            "calibrate.omega.rho",
            f"{section.omega.rho} must be > 0, or null for the square root of the keys",
        )
    least, most = _lambdas()
    for key in ("unstable", "stable"):
        value = getattr(section.omega, key)
        if not least <= value <= most:
            yield (
                f"calibrate.omega.{key}",
                f"{value} is not in [{least:g}, {most:g}]; 1 drops sinks, 0 leaves them, -1 doubles them",
            )
    yield from _one_of("calibrate.omega.mode", section.omega.mode, ("ratio", "paper", "hard"))


def _score(recipe: Recipe) -> Iterator[Problem]:
    yield from _criterion("score.criterion", recipe.score.criterion)
    if recipe.score.omega is not None:
        yield from _one_of("score.omega", recipe.score.omega, _omegas())
    if recipe.score.omega == "guided":
        yield from _guided(recipe)


def _guided(recipe: Recipe) -> Iterator[Problem]:
    section = recipe.calibrate
    if section.provider != "sampling":
        yield (
            "score.omega",
            "'guided' mixes the two branches of guided sampling, but calibrate.provider is "
            f"{section.provider!r}; set calibrate.provider=sampling",
        )
    if section.guidance_scale <= 1:
        yield (
            "calibrate.guidance_scale",
            f"{section.guidance_scale} must be above 1 for score.omega=guided; at 1 only one branch runs",
        )


def _prune(recipe: Recipe) -> Iterator[Problem]:
    section = recipe.prune
    yield from _target(recipe)
    if not section.kinds:
        yield "prune.kinds", "is empty; name at least one kind of group"
    for kind in section.kinds:
        yield from _one_of("prune.kinds", kind, _kinds())
    yield from _one_of("prune.scope", section.scope, ("global", "local"))
    yield from _one_of("prune.compensation", section.compensation, ("none", "fold", "least_squares"))
    yield from _one_of("prune.selection", section.selection, ("one_shot", "block_by_block"))
    yield from _at_least("prune.rounds", section.rounds, 1)
    yield from _at_least("prune.round_to", section.round_to, 1)
    yield from _at_least("prune.min_units", section.min_units, 1)
    yield from _at_least("prune.ridge", section.ridge, 0)
    for position, limit in enumerate(section.limits):
        place = f"prune.limits[{position}]"
        if limit.max_ratio is None and limit.min_units is None:
            yield place, f"limit for {limit.match!r} bounds nothing; give max_ratio or min_units"
        if limit.max_ratio is not None and not 0 <= limit.max_ratio <= 1:
            yield f"{place}.max_ratio", f"{limit.max_ratio} is not in [0, 1]"
        if limit.min_units is not None:
            yield from _at_least(f"{place}.min_units", limit.min_units, 1)


def _target(recipe: Recipe) -> Iterator[Problem]:
    target = recipe.prune.target
    given = {key: value for key, value in vars(target).items() if value is not None}
    if len(given) != 1:
        found = " and ".join(f"{key}={value}" for key, value in given.items()) or "none"
        yield "prune.target", f"exactly one of macs, params and ratio must be given, found {found}"
    for key in ("macs", "params"):
        if key in given and not 0 < given[key] <= 1:
            yield f"prune.target.{key}", f"{given[key]} is not in (0, 1]; it is the fraction that remains"
    if "ratio" in given and not 0 <= given["ratio"] < 1:
        yield "prune.target.ratio", f"{given['ratio']} is not in [0, 1); it is the fraction that goes"


def _recover(recipe: Recipe) -> Iterator[Problem]:
    section = recipe.recover
    for key in ("steps", "batch_size", "gradient_accumulation", "keep_checkpoints"):
        yield from _at_least(f"recover.{key}", getattr(section, key), 1)
    for key in ("warmup_steps", "checkpoint_every", "weight_decay"):
        yield from _at_least(f"recover.{key}", getattr(section, key) or 0, 0)
    if (section.warmup_steps or 0) > section.steps >= 1:
        yield "recover.warmup_steps", f"{section.warmup_steps} is more than recover.steps, {section.steps}"
    for key in ("learning_rate", "grad_clip", "max_seconds"):
        value = getattr(section, key)
        if value is not None and not 0 < value < math.inf:
            yield f"recover.{key}", f"{value} must be > 0 and finite"
    if not 0 <= section.distill_weight <= 1:
        yield "recover.distill_weight", f"{section.distill_weight} is not in [0, 1]"
    for key in ("label_dropout", "ema_decay"):
        value = getattr(section, key)
        if value is not None and not 0 <= value < 1:
            yield f"recover.{key}", f"{value} is not in [0, 1)"
    yield from _one_of("recover.schedule", section.schedule, ("cosine", "constant"))
    yield from _one_of("recover.loss_weighting", section.loss_weighting, ("uniform", "min_snr"))
    if section.mixed_precision is not None:
        yield from _one_of("recover.mixed_precision", section.mixed_precision, ("no", "bf16", "fp16"))


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    section = recipe.evaluate
    yield from _at_least("evaluate.num_samples", section.num_samples, 2)
    for key in ("num_steps", "batch_size", "denoising_samples"):
        yield from _at_least(f"evaluate.{key}", getattr(section, key), 1)
    if section.num_real is not None:
        yield from _at_least("evaluate.num_real", section.num_real, 2)
    for key, least in (("batch_size", 1), ("runs", 1), ("sampling_runs", 0)):
        yield from _at_least(f"evaluate.latency.{key}", getattr(section.latency, key), least)
    if section.latency.threads is not None:
        yield from _at_least("evaluate.latency.threads", section.latency.threads, 1)


def _export(recipe: Recipe) -> Iterator[Problem]:
    from pruning.export import EXPORTERS

    for name in recipe.export.formats:
        yield from _registered("export.formats", EXPORTERS.__getitem__, name)
    yield from _one_of("export.dtype", recipe.export.dtype, DTYPES)
    size = recipe.export.max_shard_size
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|KiB|MiB|GiB)", size, re.IGNORECASE)
    if number is None or float(number[1]) == 0:
        yield (
            "export.max_shard_size",
            f"{size!r} is no size above zero; write e.g. 500MB or 10GB",
        )


def _kinds() -> tuple[str, ...]:
    from pruning.settings import KINDS

    return KINDS


def _lambdas() -> tuple[float, float]:
    return -100.0, 1.0


def _omegas() -> tuple[str, ...]:
    from pruning.settings import WEIGHTINGS

    return WEIGHTINGS


def _criterion(key: str, name: str) -> Iterator[Problem]:
    from pruning.importance import CRITERIA

    yield from _registered(key, CRITERIA.__getitem__, name)


def _registered(key: str, look_up: Callable[[str], Any], name: str) -> Iterator[Problem]:
    """Yield the registry's own message, which lists the valid names, if it does not know `name`."""
    try:
        look_up(name)
    except ValueError as error:
        yield key, str(error)


def _one_of(key: str, value: str, valid: Iterable[str]) -> Iterator[Problem]:
    names = list(valid)
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        yield key, f"{value!r} is not valid{hint}; valid: {', '.join(names)}"


def _at_least(key: str, value: float, smallest: int) -> Iterator[Problem]:
    if value < smallest:
        yield key, f"{value} must be at least {smallest}"
