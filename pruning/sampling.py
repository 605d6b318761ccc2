"""Samples from a denoiser, every draw seeded by sample index."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data.seeding import ANCESTRAL, INITIAL, indexed_noise, sample_generator
from pruning.errors import PruningError
from pruning.models.families import denoise, denoiser_call, null_class, num_classes, sample_shape


def initial_noise(sample_ids: Sequence[int] | Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Return the noise from which samples start: float32 (B, *shape) on the CPU, one draw a sample index."""
    return indexed_noise(sample_ids, shape, seed, stream=INITIAL)


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as rounded uint8 in 0..255 (truncating would bias every metric)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def sample(
    model: nn.Module,
    scheduler: Any,
    *,
    sample_ids: Sequence[int] | Tensor,
    labels: Sequence[int] | Tensor | None = None,
    num_steps: int,
    seed: int,
    batch_size: int,
    guidance_scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample images from a pixel denoiser, class-conditional if it has classes.

    Args:
        model: A denoiser on `device` that works on pixels.
        scheduler: Any diffusers scheduler; a copy is used.
        sample_ids: N sample indices; the same index and seed give the same image in any batch.
        labels: N classes; required if and only if the model is class-conditional.
        num_steps: Denoiser calls a sample (of the scheduler's grid).
        seed: Seed of the run.
        batch_size: Samples at once.
        guidance_scale: Classifier-free guidance, eps = eps_u + scale (eps_c - eps_u) (Ho and Salimans 2022); 1: none.
        device: Where the model is.

    Returns:
        uint8 (N, C, H, W) on the CPU.

    Raises:
        PruningError: If labels are missing, too many, out of range or not taken, if guidance is asked of a model
            without a null class, or if samples come out as NaN.
    """
    ids = torch.as_tensor(sample_ids, dtype=torch.long).flatten()
    classes = _check_labels(model, labels, len(ids))
    if num_steps < 1 or batch_size < 1:
        raise PruningError(f"sampling: num_steps {num_steps} and batch_size {batch_size} must be at least 1")
    if guidance_scale != 1.0 and null_class(model) is None:
        raise PruningError(
            f"guidance_scale {guidance_scale}: {type(model).__name__} has no null class; use 1.0"
        )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        images = []
        for start in range(0, len(ids), batch_size):
            rows = slice(start, start + batch_size)
            chosen = None if classes is None else classes[rows].to(device)
            x = _sample_batch(model, scheduler, ids[rows], chosen, num_steps, seed, guidance_scale, device)
            if not bool(torch.isfinite(x).all()):
                raise PruningError(f"sampling: NaN or infinity in the samples {ids[rows].tolist()}")
            images.append(to_uint8(x).cpu())
    finally:
        for module, mode in modes:  # one by one: recovery keeps some modules in eval mode
            module.training = mode
    return torch.cat(images) if images else torch.empty(0, *sample_shape(model), dtype=torch.uint8)


def _check_labels(model: nn.Module, labels: Sequence[int] | Tensor | None, count: int) -> Tensor | None:
    """Return labels as int64 (N,), or None for an unconditional model."""
    classes = num_classes(model)
    if classes is None:
        if labels is not None:
            raise PruningError(
                f"labels were given, but {type(model).__name__} is not class-conditional; leave them out"
            )
        return None
    if labels is None:
        raise PruningError(f"{type(model).__name__} has {classes} classes: give one label a sample")
    found = torch.as_tensor(labels, dtype=torch.long).flatten()
    if len(found) != count:
        raise PruningError(f"{len(found)} labels for {count} samples: give one label a sample")
    allowed = max(classes - 1, null_class(model) or 0)
    if count and not 0 <= int(found.min()) <= int(found.max()) <= allowed:
        raise PruningError(
            f"labels go from {int(found.min())} to {int(found.max())}; the model has 0 to {classes - 1}"
        )
    return found


def _sample_batch(
    model: nn.Module,
    scheduler: Any,
    ids: Tensor,
    labels: Tensor | None,
    num_steps: int,
    seed: int,
    guidance_scale: float,
    device: torch.device | str,
) -> Tensor:
    """Return samples (B, C, H, W) in the model's own range."""
    steps = fresh_scheduler(scheduler, num_steps, device)
    extra = _step_arguments(steps, ids, seed)
    x = initial_noise(ids, sample_shape(model), seed).to(device) * getattr(steps, "init_noise_sigma", 1.0)
    dtype = next(model.parameters()).dtype
    for t in steps.timesteps:
        model_in = steps.scale_model_input(x, t) if hasattr(steps, "scale_model_input") else x
        prediction = _predict(model, model_in.to(dtype), t, labels, guidance_scale).to(x.dtype)
        x = steps.step(prediction, t, x, **extra, return_dict=False)[0]
    return x


def _predict(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
    """Return the (guided) prediction at one timestep; with guidance both branches share one call."""
    timestep = t.to(x.device).expand(len(x))
    if labels is None:
        return denoise(model, denoiser_call(model, x, timestep, {}))
    if guidance_scale == 1.0:
        return denoise(model, denoiser_call(model, x, timestep, {"class_labels": labels}))
    empty = torch.full_like(labels, null_class(model) or 0)
    call = denoiser_call(
        model, torch.cat([x, x]), timestep.repeat(2), {"class_labels": torch.cat([labels, empty])}
    )
    conditional, unconditional = denoise(model, call).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def fresh_scheduler(scheduler: Any, num_steps: int, device: torch.device | str = "cpu") -> Any:
    """Return a copy of `scheduler` without history, set to `num_steps` timesteps.

    Raises:
        PruningError: If the scheduler cannot take so many steps, or draws noise that cannot be seeded by sample.
    """
    name = type(scheduler).__name__
    if scheduler.config.get("stochastic_sampling"):
        raise PruningError(
            f"scheduler {name}: stochastic_sampling draws from the global generator; switch it off"
        )
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    plain = {"variance_type": "fixed_small"} if learned else {}  # `denoise` drops the learned variance
    steps = type(scheduler).from_config(scheduler.config, **plain)
    try:
        steps.set_timesteps(num_steps, device=device)
    except Exception as error:  # each scheduler has its own checks
        raise PruningError(f"scheduler {name} cannot take {num_steps} steps: {error}") from error
    return steps


def _step_arguments(scheduler: Any, ids: Tensor, seed: int) -> dict[str, Any]:
    """Return further arguments of ``scheduler.step``: one generator a sample where steps draw noise."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": _generators(ids, seed)}


def _generators(ids: Tensor, seed: int) -> list[torch.Generator]:
    return [sample_generator(seed, int(i), ANCESTRAL) for i in ids]


@torch.no_grad()
def sample_pipeline(
    pipeline: Any,
    *,
    sample_ids: Sequence[int] | Tensor,
    prompts: Sequence[str] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    num_steps: int,
    seed: int,
    batch_size: int,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Sample images from a whole diffusers pipeline, each with its own generator.

    Args:
        pipeline: A DiffusionPipeline that takes prompts, class labels, or neither.
        sample_ids: N sample indices; the same index and seed give the same image in any batch.
        prompts: N texts, if the pipeline takes prompts.
        labels: N classes, if it takes classes.
        num_steps: Denoising steps.
        seed: Seed of the run.
        batch_size: Samples at once.
        guidance_scale: As the pipeline understands it; 1: none.

    Returns:
        uint8 (N, C, H, W) on the CPU.

    Raises:
        PruningError: If prompts or labels are missing, not taken, or not one a sample; if guidance is asked of a
            pipeline without it; if samples come out as NaN.
    """
    ids = torch.as_tensor(sample_ids, dtype=torch.long).flatten()
    if num_steps < 1 or batch_size < 1:
        raise PruningError(f"sampling: num_steps {num_steps} and batch_size {batch_size} must be at least 1")
    taken = inspect.signature(pipeline.__call__).parameters
    condition = _pipeline_condition(pipeline, taken, prompts, labels, len(ids))
    fixed: dict[str, Any] = {"num_inference_steps": num_steps, "output_type": "np"}
    if "guidance_scale" in taken:
        fixed["guidance_scale"] = guidance_scale
    elif guidance_scale != 1.0:
        raise PruningError(f"guidance_scale {guidance_scale}: {type(pipeline).__name__} takes none; use 1.0")
    shown = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**{**shown, "disable": True})
    try:
        images = []
        for start in range(0, len(ids), batch_size):
            chunk = ids[start : start + batch_size]
            here: dict[str, Any] = {
                name: values[start : start + batch_size] for name, values in condition.items()
            }
            if "batch_size" in taken:
                here["batch_size"] = len(chunk)
            found = pipeline(**fixed, **here, generator=_generators(chunk, seed)).images
            pixels = torch.as_tensor(found, dtype=torch.float32).permute(0, 3, 1, 2)
            if not bool(torch.isfinite(pixels).all()):
                raise PruningError(f"sampling: NaN or infinity in the samples {chunk.tolist()}")
            images.append(to_uint8(pixels * 2 - 1))
    finally:
        pipeline.set_progress_bar_config(**shown)
    return torch.cat(images) if images else torch.empty(0, dtype=torch.uint8)


def _pipeline_condition(
    pipeline: Any,
    taken: Mapping[str, Any],
    prompts: Sequence[str] | None,
    labels: Sequence[int] | Tensor | None,
    count: int,
) -> dict[str, list[Any]]:
    """Return the prompts or labels under the name that the pipeline gives them."""
    asked: dict[str, tuple[str, list[Any] | None]] = {
        "prompt": ("prompts", None if prompts is None else list(prompts)),
        "class_labels": ("labels", None if labels is None else [int(i) for i in labels]),
    }
    condition: dict[str, list[Any]] = {}
    for argument, (what, values) in asked.items():
        if values is None and argument in taken:
            raise PruningError(f"{type(pipeline).__name__} needs {what}: give one a sample")
        if values is None:
            continue
        if argument not in taken:
            raise PruningError(f"{what} were given, but {type(pipeline).__name__} takes none; leave them out")
        if len(values) != count:
            raise PruningError(f"{len(values)} {what} for {count} samples: give one a sample")
        condition[argument] = values
    return condition
