"""Samples from a pixel denoiser, every draw seeded by sample index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor, nn

from pruning.data.noise import num_train_timesteps
from pruning.data.seeding import INITIAL, indexed_noise
from pruning.errors import PruningError
from pruning.models.families import (
    denoise,
    denoiser_call,
    family_of,
    null_class,
    num_classes,
    sample_shape,
)
from pruning.models.pipelines import evaluating
from pruning.models.running import device_of, dtype_of
from pruning.sampling.steps import fresh_scheduler, in_batches, run_steps, sample_generators, to_uint8
from pruning.types import config_of


class PixelPipeline:
    """A pixel denoiser and its scheduler, called as a pipeline of diffusers.

    Args:
        denoiser: It works on pixels.
        scheduler: Any diffusers scheduler; each call takes a copy.

    Raises:
        PruningError: If there is no scheduler, or the denoiser is not called with pixels and classes alone.
    """

    def __init__(self, denoiser: nn.Module, scheduler: Any) -> None:
        num_train_timesteps(scheduler)  # no scheduler fails here
        if family_of(denoiser).takes_text:
            raise PruningError(
                f"{type(denoiser).__name__} is conditioned on text, but a bare denoiser cannot encode prompts; give "
                "the folder or hub id of a whole pipeline with its text encoder"
            )
        if kind := config_of(denoiser).get("class_embed_type"):
            raise PruningError(
                f"{type(denoiser).__name__} with class_embed_type {kind!r}: data give no such condition"
            )
        self.denoiser, self.scheduler = denoiser, scheduler

    @property
    def components(self) -> dict[str, Any]:
        """The denoiser and the scheduler, by name."""
        return {"denoiser": self.denoiser, "scheduler": self.scheduler}

    def initial_noise(self, sample_ids: Sequence[int] | Tensor, seed: int) -> Tensor:
        """Return the noise that samples begin with, one draw per sample index: float32 (B, C, H, W)."""
        return indexed_noise(sample_ids, sample_shape(self.denoiser), seed, INITIAL)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | Tensor | None = None,
        *,
        batch_size: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> Any:
        """Sample images, class-conditional if the denoiser has classes.

        Args:
            class_labels: B classes; required if and only if the denoiser is class-conditional.
            batch_size: B, where neither labels nor noise say it; 1 if nothing does.
            num_inference_steps: Denoiser calls per sample (of the scheduler's grid).
            guidance_scale: Classifier-free guidance, eps = eps_u + scale (eps_c - eps_u) (Ho and Salimans 2022); 1:
                none.
            generator: Of the noise that is drawn on the way, and of the initial noise without `latents`; one for all
                samples or one for each.
            latents: The noise to begin with, standard normal (B, C, H, W).
            output_type: ``np``: float32 (B, H, W, C) in [0, 1]; ``latent``: the tensor (B, C, H, W) in about [-1, 1].
            return_dict: Whether to return an ``ImagePipelineOutput``, or its entries.

        Raises:
            PruningError: If labels are missing, too many, out of range or not taken, or if guidance is asked of a
                denoiser without a null class.
        """
        model, device = self.denoiser, device_of(self.denoiser)
        if guidance_scale != 1.0 and null_class(model) is None:
            raise PruningError(
                f"guidance_scale {guidance_scale}: {type(model).__name__} has no null class; use 1.0"
            )
        given = [len(each) for each in (latents, class_labels) if each is not None]
        count = given[0] if given else batch_size or 1
        labels = _check_labels(model, class_labels, count)
        draws = generator if isinstance(generator, list) else [generator or torch.Generator()] * count
        if latents is None:
            latents = torch.stack([torch.randn(sample_shape(model), generator=each) for each in draws])
        if labels is not None:
            labels = labels.to(device)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return _predict(model, x.to(dtype_of(model)), t, labels, guidance_scale)

        steps = fresh_scheduler(self.scheduler, num_inference_steps, device)
        with evaluating(model):
            drawn = run_steps(steps, predict, latents.to(device), draws)
        images: Any = drawn
        if output_type == "np":
            images = (drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


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
) -> Tensor:
    """Sample images from a pixel denoiser, class-conditional if it has classes.

    Args:
        model: A denoiser that works on pixels.
        scheduler: Any diffusers scheduler; a copy is used.
        sample_ids: N sample indices; the same index and seed give the same image in any batch.
        labels: N classes; required if and only if the model is class-conditional.
        num_steps: Denoiser calls per sample (of the scheduler's grid).
        seed: Seed of the run.
        batch_size: Samples at once.
        guidance_scale: As `PixelPipeline` takes it.

    Returns:
        uint8 (N, C, H, W) on the CPU.

    Raises:
        PruningError: As `PixelPipeline`, and if samples come out as NaN.
    """
    pipeline, ids = PixelPipeline(model, scheduler), torch.as_tensor(sample_ids, dtype=torch.long).flatten()
    classes = _check_labels(model, labels, len(ids))

    def draw(rows: slice) -> Tensor:
        images = pipeline(
            None if classes is None else classes[rows],
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            generator=sample_generators(ids[rows], seed),
            latents=pipeline.initial_noise(ids[rows], seed),
            output_type="latent",
            return_dict=False,
        )[0]
        return images

    if num_steps < 1 or batch_size < 1:
        raise PruningError(f"sampling: num_steps {num_steps} and batch_size {batch_size} must be at least 1")
    images = in_batches(ids, batch_size, draw, to_uint8)
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
        raise PruningError(f"{type(model).__name__} has {classes} classes: give one label per sample")
    found = torch.as_tensor(labels, dtype=torch.long).flatten()
    if len(found) != count:
        raise PruningError(f"{len(found)} labels for {count} samples: give one label per sample")
    allowed = max(classes - 1, null_class(model) or 0)
    if count and not 0 <= int(found.min()) <= int(found.max()) <= allowed:
        raise PruningError(
            f"labels go from {int(found.min())} to {int(found.max())}; the model has 0 to {classes - 1}"
        )
    return found


def _predict(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
    """Return the (guided) prediction at one timestep; with guidance both branches share one call."""
    timestep = t.to(x.device).expand(len(x))
    if labels is None or guidance_scale == 1.0:
        condition = {} if labels is None else {"class_labels": labels}
        return denoise(model, denoiser_call(model, x, timestep, condition))
    empty = torch.full_like(labels, null_class(model) or 0)
    call = denoiser_call(
        model, torch.cat([x, x]), timestep.repeat(2), {"class_labels": torch.cat([labels, empty])}
    )
    conditional, unconditional = denoise(model, call).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
