"""RFD4 La-Proteina: backbone and latents of residues, attention with a bias from their pairs."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "nlayers": 4,
    "token_dim": 48,
    "nheads": 3,
    "dim_cond": 28,
    "pair_repr_dim": 20,
    "latent_dim": 6,
    "token_type_emb_dim": 8,
    "cath_emb_dim": 4,
    "t_emb_dim": 16,
    "seq_sep_dim": 10,
    "xt_pair_dist_dim": 12,
    "tri_mult_c": 14,
    "num_sequence_classes": 11,
    "recycle_conditioning_dim": 3,
}
RECYCLED: dict[str, Any] = {"feats_pair_cond": (), "update_pair_repr_every_n": 1}
ATOMS, TOKENS = 37, 18
BINARY = ("pistack", "saltbridge", "hydrophobic", "metal-coord", "hotspot")


def _conditioning(draw: Draw) -> dict[str, Any]:
    """What is known of each residue, of its 37 atoms and of each pair."""
    atoms, pairs = (BATCH, TOKENS, ATOMS), (BATCH, TOKENS, TOKENS)
    return {f"condition_{name}_1_atom": draw.integers(2, *atoms) for name in BINARY} | {
        "is_in_context_conditioning": torch.arange(TOKENS).repeat(BATCH, 1) < 3,
        "supports_local_latent": torch.arange(TOKENS).repeat(BATCH, 1) != 9,
        "molecule_iid": draw.integers(3, BATCH, TOKENS),
        "molecule_entity_id": draw.integers(2, BATCH, TOKENS),
        "token_bond_path_length": draw.integers(10, *pairs),
        "bond_mask": draw.integers(2, *pairs),
        "bond_order": draw.integers(5, *pairs),
        "is_aromatic": draw.integers(2, *pairs),
        "canonical_polymer_ordering": draw.integers(2, *pairs),
        "charge": draw.integers(5, *atoms) - 2,
        "element": draw.integers(20, *atoms),
        "condition_coordinate_1_atom": 10 * draw.normal(*atoms, 3),
        "condition_rasa-binned_1_atom": draw.integers(4, *atoms),
        "condition_secondary-structure_1_residue": draw.integers(4, BATCH, TOKENS),
        "condition_hbond_1_atom": draw.integers(4, *atoms),
        "condition_pication_1_atom": draw.integers(4, *atoms),
        "condition_index-group_1_token": draw.integers(3, BATCH, TOKENS),
        "condition_cath-label_1_residue": draw.integers(4, BATCH, TOKENS, 3),
        "condition_ChainCentroid_1_atom": 10 * draw.normal(BATCH, TOKENS, 3),
    }


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "bb_ca": draw.normal(BATCH, TOKENS, 3),
        "local_latents": draw.normal(BATCH, TOKENS, 6),
        "bb_ca_time": draw.times(1.0),
        "local_latents_time": draw.times(0.8),
        "padding_mask": torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS - 4]]),
        "token_type": draw.integers(7, BATCH, TOKENS),
        "atom37_mask": draw.integers(2, BATCH, TOKENS, ATOMS).bool(),
        "conditioning": _conditioning(draw),
    }


def _recycled(draw: Draw) -> dict[str, Any]:
    """Three passes, each starts from the one before."""
    return _call(draw) | {"recycle_depth": 3}


MODELS = {
    "rfd4_proteina": Tiny("RFD4ProteinaTransformer", CONFIG, _call),
    "rfd4_proteina_recycled": Tiny("RFD4ProteinaTransformer", CONFIG | RECYCLED, _recycled),
}
