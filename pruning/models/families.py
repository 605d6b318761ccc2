"""How each family of denoisers is called; a further family is one entry of `FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.registry import Registry
from pruning.types import config_of

NULL_CLASS = "_null_class"
"""Key of a model's config for the null class, where its class does not say it; see `set_null_class`."""

TEXT_TOKENS = 77
"""Length of a CLIP prompt, the length that example calls use."""


@dataclass(frozen=True)
class Draw:
    """Makes the tensors of an example call, for a batch of B, on a device and in a floating point type."""

    batch_size: int
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def normal(self, *shape: int) -> Tensor:
        """Return a standard normal draw of shape ``(B, *shape)``; on the meta device nothing is drawn."""
        if self.device.type == "meta":  # a video is a hundred megabytes
            return torch.empty(self.batch_size, *shape, device=self.device, dtype=self.dtype)
        return torch.randn(self.batch_size, *shape, generator=self.generator).to(self.device, self.dtype)

    def uniform(self) -> Tensor:
        """Return a draw from (0, 1) a sample, shape ``(B,)``."""
        return torch.rand(self.batch_size, generator=self.generator).to(self.device, self.dtype)

    def integers(self, high: int) -> Tensor:
        """Return int64 draws below `high`, shape ``(B,)``."""
        return torch.randint(high, (self.batch_size,), generator=self.generator).to(self.device)


@dataclass(frozen=True)
class Family:
    """What calling one denoiser class needs to know.

    Attributes:
        sample_argument: Name of the argument that takes the noised sample.
        conditioning: (model, draw) -> example values of all arguments but sample and timestep.
        num_classes: model -> number of classes, or None if it is not class-conditional.
        null_class: model -> the class that stands for "no class", or None if its config names none.
        takes_text: Whether it is conditioned on prompts, which its pipeline encodes.
    """

    sample_argument: str
    conditioning: Callable[[Any, Draw], dict[str, Any]]
    num_classes: Callable[[Any], int | None] = lambda model: None
    null_class: Callable[[Any], int | None] = lambda model: None
    takes_text: bool = False


FAMILIES: Registry[Family] = Registry("denoiser class")


def family_of(model: nn.Module) -> Family:
    """Return the family of `model` by its class name; a class that is not registered is a PruningError."""
    name = type(model).__name__
    if name not in FAMILIES:
        raise PruningError(
            f"denoiser class {name!r} is not known here; known: {', '.join(FAMILIES)} "
            "(a further class is one entry in pruning/models/families.py)"
        )
    return FAMILIES[name]


def is_known(model: nn.Module) -> bool:
    """Tell whether the class of `model` is a family here, so that noised images can be made for it."""
    return type(model).__name__ in FAMILIES


def num_classes(model: nn.Module) -> int | None:
    """Return the number of classes of a class-conditional model, the null class left out; else None.

    Of a class that is no family here no classes are known.
    """
    if not is_known(model):
        return None
    count = family_of(model).num_classes(model)
    return count if count is None or _settled(model) is None else count - 1


def null_class(model: nn.Module) -> int | None:
    """Return the label that stands for "no class", which guidance and label dropout use; None without one."""
    if not is_known(model):
        return None
    by_family = family_of(model).null_class(model)
    return _settled(model) if by_family is None else by_family


def has_open_null_class(model: nn.Module) -> bool:
    """Tell whether a model has classes and does not say by its class which of them stands for "no class"."""
    if not is_known(model):
        return False
    family = family_of(model)
    return family.num_classes(model) is not None and family.null_class(model) is None


def set_null_class(model: nn.Module, label: int | None) -> None:
    """Keep in a model's config what stands for "no class", if its class leaves that open: its last class, or None."""
    if has_open_null_class(model):
        cast(Any, model).register_to_config(**{NULL_CLASS: label})


def _settled(model: nn.Module) -> int | None:
    """Return the null class in the config, which `set_null_class` left there; anything else there is a PruningError."""
    label = config_of(model).get(NULL_CLASS)
    count = family_of(model).num_classes(model)
    if label is None or (count is not None and type(label) is int and label == count - 1):
        return label
    raise PruningError(
        f"{type(model).__name__}: {NULL_CLASS} is {label!r} in the config; expected the last of its {count} classes"
    )


def sample_shape(model: nn.Module) -> tuple[int, int, int]:
    """Return ``(C, H, W)`` of the model's input; a config that names no sample size is a PruningError."""
    config = config_of(model)
    size = config.get("sample_size")
    if size is None:
        raise PruningError(
            f"{type(model).__name__}: the config has no sample_size, so the input's shape is not known; add it to "
            "config.json"
        )
    hinted = config.get("addition_embed_type") == "image_hint"  # Kandinsky's ControlNet joins a hint
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"] - 4 * hinted, height, width


def denoiser_call(
    model: nn.Module, sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments of one denoiser call.

    Args:
        model: The denoiser.
        sample: Noised samples (B, C, H, W).
        timestep: (B,).
        conditioning: The other arguments (class labels, text embeddings, …).
    """
    return {family_of(model).sample_argument: sample, "timestep": timestep, **conditioning}


def denoise(model: nn.Module, call: Mapping[str, Any]) -> Tensor:
    """Return the denoiser's prediction (B, C, H, W) for the keyword arguments of `denoiser_call` or `example_call`.

    Where the model also predicts a variance (twice as many channels out as in), that half is dropped. What a model of
    no family here says is returned as it is.
    """
    out = model(**call, return_dict=False)[0]
    if not is_known(model):
        return out
    channels = call[family_of(model).sample_argument].shape[1]
    return out[:, :channels] if out.shape[1] == 2 * channels else out


def _class_labels(model: Any, draw: Draw) -> dict[str, Any]:
    """Return example ``class_labels`` for the UNets, by ``class_embed_type``; nothing if the model takes none."""
    config = model.config
    kind = config.get("class_embed_type")
    if kind is None:
        count = config.get("num_class_embeds")
        return {} if count is None else {"class_labels": draw.integers(count)}
    if kind == "timestep":
        return {"class_labels": draw.integers(1000)}
    if kind == "identity":
        width = config.get("time_embedding_dim") or config["block_out_channels"][0] * 4
        return {"class_labels": draw.normal(width)}
    return {"class_labels": draw.normal(config["projection_class_embeddings_input_dim"])}


_IMAGE_EMBEDDINGS = {
    **dict.fromkeys(("text_image", "text_image_proj"), "cross_attention_dim"),
    **dict.fromkeys(("image", "image_hint", "image_proj", "ip_image_proj"), "encoder_hid_dim"),
}
"""Kinds of embedding and projection of UNet2DConditionModel that take images, and the config entry of their width."""


def added_conditions(model: Any, draw: Draw) -> dict[str, Tensor]:
    """Return example ``added_cond_kwargs`` of the text UNets, by their kinds of embedding and projection."""
    config = model.config
    kind, projection = config.get("addition_embed_type"), config.get("encoder_hid_dim_type")
    added: dict[str, Tensor] = {}
    if kind == "text_time":
        ids = torch.tensor([1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0])
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added["text_embeds"] = draw.normal(width)
        added["time_ids"] = ids.to(draw.device, draw.dtype).expand(draw.batch_size, -1)
    if kind == "text_image":
        added["text_embeds"] = draw.normal(config["cross_attention_dim"])
    if width_of := _IMAGE_EMBEDDINGS.get(kind) or _IMAGE_EMBEDDINGS.get(projection):
        added["image_embeds"] = draw.normal(config[width_of])
    if kind == "image_hint":
        added["hint"] = draw.normal(3, 8 * config["sample_size"], 8 * config["sample_size"])
    return added


def _text_conditioning(model: Any, draw: Draw) -> dict[str, Any]:
    """Return example arguments of UNet2DConditionModel but sample and timestep."""
    config = model.config
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    call: dict[str, Any] = {"encoder_hidden_states": None}
    if isinstance(width, int):
        call["encoder_hidden_states"] = draw.normal(TEXT_TOKENS, width)
    elif list(width) != list(
        config["block_out_channels"]
    ):  # else there is no text: all is self-attention (AudioLDM)
        call["encoder_hidden_states"] = draw.normal(TEXT_TOKENS, width[0])
    call |= _class_labels(model, draw)
    if added := added_conditions(model, draw):
        call["added_cond_kwargs"] = added
    if config.get("time_cond_proj_dim"):
        call["timestep_cond"] = draw.normal(config["time_cond_proj_dim"])
    return call


def _embedded_classes(model: Any) -> int | None:
    """Return the size of a UNet's class embedding, if it has one."""
    return model.config.get("num_class_embeds") if model.config.get("class_embed_type") is None else None


FAMILIES.register("UNet2DModel")(Family("sample", _class_labels, _embedded_classes))
FAMILIES.register("UNet2DConditionModel")(
    Family("sample", _text_conditioning, _embedded_classes, takes_text=True)
)
FAMILIES.register("DiTTransformer2DModel")(
    Family(
        "hidden_states",
        lambda model, draw: {"class_labels": draw.integers(model.config["num_embeds_ada_norm"])},
        num_classes=lambda model: model.config["num_embeds_ada_norm"],
        null_class=lambda model: model.config["num_embeds_ada_norm"],
    )
)


def autoencoder_of(pipeline: Any | None) -> Any | None:
    """Return the autoencoder of a pipeline, or None where the model works on pixels."""
    return getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)


def pixels_per_latent(pipeline: Any | None) -> int:
    """Return how many pixels of a side become one latent; 1 where the model works on pixels."""
    if (autoencoder := autoencoder_of(pipeline)) is None:
        return 1
    blocks = autoencoder.config.get("block_out_channels") or autoencoder.config["encoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def takes_pixels(model: nn.Module) -> bool:
    """Tell by the channels of a model's input whether these are images, grey or coloured, and not latents."""
    return sample_shape(model)[0] in (1, 3)


def pixel_shape(model: nn.Module, pipeline: Any | None) -> tuple[int, int]:
    """Return channels and side of the images that a model in a pipeline is about."""
    channels, side, _ = sample_shape(model)
    if (autoencoder := autoencoder_of(pipeline)) is not None:
        channels = autoencoder.config.get("in_channels", 3)
    return channels, side * pixels_per_latent(pipeline)
