"""How a pipeline's latents become what its autoencoder decodes, learned by watching it, so that images can enter.

Whatever a pipeline does between the last step of its scheduler and its autoencoder (scaling, shifting, unpacking of
tokens) moves each entry of the latents to one place and scales it there. So it is put the other way round entry by
entry: in a few runs, without the denoiser, the end of the run is replaced by numbers that say where they come from.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.models.pipelines import modules_of
from pruning.recording.rehearsing import Learned, rehearsal
from pruning.recording.runs import Runs
from pruning.recording.watching import Watch
from pruning.types import config_of

DECODING = "decoding.safetensors"
"""File of a recording for images."""

BASE = 16
"""Levels by which a run tells entries apart: bfloat16 and uint8 know more."""

EDGE = 0.9
"""Largest number that stands for something, for some pipelines clip."""


@dataclass(frozen=True)
class Decoding:
    """``z.flatten()[j] = scale[j] * x0.flatten()[order[j]] + shift[j]``.

    z is what the autoencoder decodes or, without one, the image as the pipeline returns it, (1, H, W, C) in [0, 1]; x0
    is what the scheduler's last step gives, one sample.

    Attributes:
        autoencoder: Name of the component; None where the latents are pixels.
        order: int64 (n,).
        scale: float32 (n,).
        shift: float32 (n,).
        decoded: Shape of z.
        latent: Shape of x0.
    """

    autoencoder: str | None
    order: Tensor
    scale: Tensor
    shift: Tensor
    decoded: tuple[int, ...]
    latent: tuple[int, ...]

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        said = {"autoencoder": self.autoencoder, "decoded": self.decoded, "latent": self.latent}
        tensors = {"order": self.order, "scale": self.scale, "shift": self.shift}
        save_file(tensors, path, metadata={"decoding": json.dumps(said)})

    @classmethod
    def load(cls, path: Path) -> Decoding:
        """Read what `save` wrote; a PruningError says if it is something else."""
        try:
            with safe_open(path, "pt") as file:
                said = json.loads((file.metadata() or {})["decoding"])
                tensors = {name: file.get_tensor(name) for name in ("order", "scale", "shift")}
            decoded, latent = tuple(map(int, said["decoded"])), tuple(map(int, said["latent"]))
            count, (order, scale, shift) = math.prod(latent), tensors.values()
            if min(*decoded, *latent) < 1 or math.prod(decoded) != count or order.shape != (count,):
                raise ValueError("its shapes do not fit each other")
            if not isinstance(said["autoencoder"], (str, type(None))):
                raise ValueError("its autoencoder has no name")
            if not torch.equal(order.sort().values, torch.arange(count)):
                raise ValueError("its order is no order of the latents")
            if not all(
                bool(each.isfinite().all()) and each.shape == order.shape for each in (scale, shift)
            ) or not bool(scale.all()):
                raise ValueError("its scale or shift is no finite number for each of the latents")
            return cls(said["autoencoder"], **tensors, decoded=decoded, latent=latent)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PruningError(
                f"{path} cannot be read ({type(error).__name__}: {error}); record anew"
            ) from error

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Height and width of the images, where the latents are pixels."""
        return None if self.autoencoder else (self.decoded[1], self.decoded[2])

    def latents_of(self, pipeline: Any, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return images as clean samples in the scheduler's layout, float32 on the CPU, (B, ...).

        Args:
            pipeline: Whose autoencoder is asked.
            images: (B, C, H, W) in [-1, 1].
            generators: One CPU generator per image, for autoencoders that draw.

        Raises:
            PruningError: If they do not have the size of what the pipeline makes.
        """
        if self.autoencoder is None:
            z = images.permute(0, 2, 3, 1) / 2 + 0.5
        else:
            module = modules_of(pipeline)[self.autoencoder]
            z = _encoded(module, images.unsqueeze(2) if len(self.decoded) == 5 else images, generators).cpu()
        if tuple(z.shape[1:]) != self.decoded[1:]:
            raise PruningError(
                f"images of {images.shape[-1]} x {images.shape[-2]} pixels become {tuple(z.shape[1:])}, but "
                f"{type(pipeline).__name__} decodes {self.decoded[1:]}; give data.resolution and the pipeline's height "
                "and width the same size"
            )
        flat = torch.empty(len(z), math.prod(self.latent))
        flat[:, self.order] = (z.flatten(1).float() - self.shift) / self.scale
        return flat.view(len(z), *self.latent[1:])


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


def _encoded(autoencoder: nn.Module, images: Tensor, generators: list[torch.Generator]) -> Tensor:
    try:
        return encoded(autoencoder, images, generators)
    except (RuntimeError, ValueError, TypeError) as error:  # each autoencoder has its own checks
        raise PruningError(
            f"images of shape {tuple(images.shape)} cannot be encoded by {type(autoencoder).__name__}: {error}"
        ) from error


class _Reached(BaseException):
    """The autoencoder was asked to decode this; no error, so that nobody takes it for one."""

    def __init__(self, z: Tensor) -> None:
        super().__init__("decoding was reached")
        self.z = z


def learn_decoding(runs: Runs, learned: Learned) -> Decoding | None:
    """Learn how latents are decoded; None where they are not moved and scaled entry by entry, or there are several."""
    last = learned.steps[-1].updates
    if len(last) != 1 or not isinstance(last[0].result, Tensor):
        return None
    like = last[0].result[:1].float().cpu()
    name = _autoencoder(runs.pipeline)
    try:
        low, high = (_decoded(runs, learned, name, torch.full_like(like, value)) for value in (-EDGE, EDGE))
        if low.numel() != like.numel() or (name is None and not _is_image(low)):
            return None
        scale, shift = (high - low) / (2 * EDGE), (high + low) / 2
        order = torch.zeros(like.numel(), dtype=torch.long)
        for digit in range(math.ceil(math.log(max(like.numel(), 2), BASE))):
            worth = BASE**digit
            digits = torch.arange(like.numel()) // worth % BASE
            values = (digits / (BASE - 1) * 2 - 1) * EDGE
            z = _decoded(runs, learned, name, values.view(like.shape).to(like))
            read = (((z - shift) / scale) / EDGE + 1) / 2 * (BASE - 1)
            order += read.round().long().flatten() * worth
    except PruningError:
        return None
    if not torch.equal(order.sort().values, torch.arange(like.numel())) or not bool((scale != 0).all()):
        return None
    return Decoding(name, order, scale.flatten(), shift.flatten(), tuple(low.shape), tuple(like.shape))


def _is_image(z: Tensor) -> bool:
    return z.ndim == 4 and z.shape[-1] in (1, 3)


def _autoencoder(pipeline: Any) -> str | None:
    parts = modules_of(pipeline).items()
    return next((name for name, part in parts if hasattr(part, "decode") and hasattr(part, "encode")), None)


def _decoded(runs: Runs, learned: Learned, name: str | None, chosen: Tensor) -> Tensor:
    """Return what the pipeline decodes where its run ends at `chosen`; float32 on the CPU."""
    final = len(learned.steps) - 1

    def end(position: int, slot: int, result: Tensor) -> Tensor:
        return chosen.to(result).expand_as(result) if position == final else result

    arguments = {**runs.shared, **runs.inputs[0]}
    if "output_type" in runs.parameters:
        arguments["output_type"] = "np"
    found: list[Any] = []
    watch = Watch(learned.inputs.keys(), answer=rehearsal(learned), end=end, returned=found.append)
    with _reached(modules_of(runs.pipeline)[name]) if name else contextlib.nullcontext():
        try:
            runs.ask(arguments, [0], watch)
        except _Reached as reached:
            return reached.z.detach().float().cpu()
    if name is not None:
        raise PruningError(f"{runs.name} decodes nothing")
    return torch.as_tensor(found[0])[:1].float()


@contextlib.contextmanager
def _reached(autoencoder: nn.Module) -> Iterator[None]:
    """Stop where the autoencoder is asked to decode."""

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> None:
        raise _Reached(z)

    vars(autoencoder)["decode"] = decode
    try:
        yield
    finally:
        del vars(autoencoder)["decode"]
