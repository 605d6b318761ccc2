"""Z-Image: one stream of image and text tokens, refiners of each before, lists of samples in place of a batch."""

from __future__ import annotations

from typing import Any

from tests.zoo.base import Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 5,
    "dim": 48,
    "n_layers": 3,
    "n_refiner_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 4,
    "cap_feat_dim": 20,
    "axes_dims": [4, 4, 4],
    "axes_lens": [128, 16, 16],
}


def _text(draw: Draw) -> dict[str, Any]:
    """Texts of unequal length: each is padded to a multiple of 32 tokens, the batch to the longest."""
    return {
        "x": list(draw.normal(2, 5, 1, 8, 10)),
        "t": draw.times(1.0),
        "cap_feats": [draw.normal(7, 20), draw.normal(35, 20)],
        "patch_size": 2,
        "f_patch_size": 1,
    }


def _omni(draw: Draw) -> dict[str, Any]:
    """One clean image, its SigLIP tokens, then the noisy image; a text before each and one after."""
    return {
        "x": [list(draw.normal(2, 5, 1, 8, 10)) for _ in range(2)],
        "t": draw.times(1.0),
        "cap_feats": [list(draw.normal(3, 7, 20)) for _ in range(2)],
        "siglip_feats": [[draw.normal(3, 4, 14), None] for _ in range(2)],
        "image_noise_mask": [[0, 1]] * 2,
        "patch_size": 2,
        "f_patch_size": 1,
    }


MODELS = {
    "z_image": Tiny("ZImageTransformer2DModel", CONFIG, _text),
    "z_image_no_qk_norm": Tiny("ZImageTransformer2DModel", CONFIG | {"qk_norm": False}, _text),
    "z_image_omni": Tiny("ZImageTransformer2DModel", CONFIG | {"siglip_feat_dim": 14}, _omni),
}
