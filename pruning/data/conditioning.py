"""Images, labels and captions -> what the denoiser is given: pixels or latents, classes, text embeddings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.models.families import autoencoder_of, family_of, num_classes
from pruning.types import config_of

logger = logging.getLogger(__name__)


def takes_text(model: nn.Module) -> bool:
    """Tell whether a model is conditioned on prompts, which its pipeline encodes."""
    return type(model).__name__ == "UNet2DConditionModel"


class Conditioner:
    """Turns data into inputs of a denoiser.

    Pixels stay as they are; with a pipeline that has a VAE they become latents, drawn from its posterior and
    scaled. Class-conditional models get the labels; text-conditional ones the pipeline's embeddings of the
    captions (of the empty prompt, with a warning, where the data have none).

    Args:
        model: The denoiser.
        pipeline: The pipeline around it, or None for a pixel model without text.

    Raises:
        PruningError: If the class is unknown, or takes text and comes without a pipeline that encodes prompts.
    """

    def __init__(self, model: nn.Module, pipeline: Any | None = None) -> None:
        family_of(model)
        if takes_text(model) and not hasattr(pipeline, "encode_prompt"):
            what = "a bare denoiser" if pipeline is None else type(pipeline).__name__
            raise PruningError(
                f"{type(model).__name__} is conditioned on text, but {what} cannot encode prompts; give the folder or "
                "hub id of a whole pipeline with its text encoder"
            )
        self.model, self.pipeline = model, pipeline
        self.vae: nn.Module | None = autoencoder_of(pipeline)
        self._warned = False

    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None,
        captions: Sequence[str] | None,
        generators: list[torch.Generator],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Encode one batch.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: (B,) int64, or None.
            captions: B texts, or None.
            generators: One CPU generator per sample.

        Returns:
            Clean samples (B, C', H', W') in the model's range, and the call arguments beside sample and timestep.

        Raises:
            PruningError: If labels are missing or out of range, or the channels do not fit the model.
        """
        x0 = images if self.vae is None else encode_latents(self.vae, images, generators)
        _check_channels(self.model, x0, self.vae is not None)
        call = _class_arguments(self.model, labels, x0.device)
        if takes_text(self.model):
            if captions is None and not self._warned:
                logger.warning("the data have no captions: the empty prompt conditions every image")
                self._warned = True
            prompts = list(captions) if captions is not None else [""] * len(images)
            call |= _text_arguments(self.model, self.pipeline, prompts, images.shape[-2:])
        return x0, call


def encode_latents(vae: nn.Module, images: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Return latents as the denoiser was trained on: float32 (B, C', H', W'), on the VAE's device; see `encoded`."""
    config, latents = config_of(vae), encoded(vae, images, generators)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    mean, std = (torch.tensor(by_channel).to(latents)[:, None, None] for by_channel in (mean, std))
    return (latents - mean) * (config.get("scaling_factor") or 1.0) / std


@torch.no_grad()
def encoded(vae: nn.Module, images: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Return what an autoencoder makes of images, before anything is scaled: float32, on its device.

    Args:
        vae: AutoencoderKL (its posterior is drawn from), VQModel (before quantization) or a deterministic autoencoder.
        images: (B, C, H, W) in [-1, 1].
        generators: One CPU generator per sample, with which a posterior is drawn from.
    """
    config, first = config_of(vae), next(vae.parameters())
    dtype = first.dtype
    upcast = bool(config.get("force_upcast")) and dtype == torch.float16  # SDXL's VAE overflows in float16
    try:
        if upcast:
            vae.to(torch.float32)
        found = cast(Any, vae).encode(images.to(first.device, torch.float32 if upcast else dtype))
    finally:
        if upcast:
            vae.to(dtype)
    if hasattr(found, "latent_dist"):
        return found.latent_dist.sample(generators).to(torch.float32)
    return (found.latents if hasattr(found, "latents") else found.latent).to(torch.float32)


def _check_channels(model: nn.Module, x0: Tensor, latent: bool) -> None:
    """Raise PruningError unless `x0` has the channels that `model` takes."""
    want = config_of(model)["in_channels"]
    if x0.shape[1] == want:
        return
    hint = (
        "this denoiser takes further inputs (inpainting, image editing), which noised data do not give"
        if latent
        else "give images of as many, or a pipeline folder with the VAE if the denoiser works on latents"
    )
    raise PruningError(
        f"{type(model).__name__} takes {want} channels, but the data give {'latents' if latent else 'images'} of "
        f"{x0.shape[1]} channels; {hint}"
    )


def _class_arguments(model: nn.Module, labels: Tensor | None, device: torch.device) -> dict[str, Any]:
    """Return ``class_labels`` for a class-conditional model, nothing for another."""
    classes, kind = num_classes(model), config_of(model).get("class_embed_type")
    if kind is not None:
        raise PruningError(
            f"{type(model).__name__} with class_embed_type {kind!r}: data give no such condition"
        )
    if classes is None:
        return {}
    if labels is None:
        raise PruningError(
            f"{type(model).__name__} has {classes} classes, but the data have no labels: give label_column"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise PruningError(
            f"labels go from {int(labels.min())} to {int(labels.max())}; {type(model).__name__} has 0 to {classes - 1}"
        )
    return {"class_labels": labels.to(device)}


@torch.no_grad()
def _text_arguments(model: Any, pipeline: Any, prompts: list[str], size: Sequence[int]) -> dict[str, Any]:
    """Encode prompts for Stable Diffusion 1, 2 (one text encoder) and XL (pooled text and image size)."""
    kind = model.config.get("addition_embed_type")
    projection = model.config.get("encoder_hid_dim_type")
    if kind not in (None, "text", "text_time") or projection not in (None, "text_proj"):
        raise PruningError(
            f"UNet2DConditionModel with addition_embed_type {kind!r} also takes images, which noised data do not "
            "give; calibrate on sampling trajectories instead"
        )
    encoded = pipeline.encode_prompt(
        prompt=prompts, device=model.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    call: dict[str, Any] = {"encoder_hidden_states": encoded[0]}
    if kind == "text_time":
        pooled = encoded[2]
        width = model.config["projection_class_embeddings_input_dim"] - pooled.shape[-1]
        ids = width // model.config["addition_time_embed_dim"]
        if ids != 6:
            raise PruningError(
                f"the UNet takes {ids} size conditions; known are 6 (SDXL base: size, crop, target)"
            )
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=pooled.dtype, device=pooled.device)
        call["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids.expand(len(prompts), -1)}
    return call
