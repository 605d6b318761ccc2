"""What a denoiser is at real size and what a plan would make of it, on the meta device: no weights, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn

from pruning.allocation import CostModel, allocate, prunable
from pruning.errors import PruningError
from pruning.groups import KINDS, find_groups
from pruning.models import load_meta_denoiser, native_input
from pruning.settings import DTYPES, Prune
from pruning.stages.planning import by_kind, cuts_of, plan_figures
from pruning.types import PrunableGroup, PruningPlan, config_hash, config_of

INT8 = "int8"
DENOISERS = ("transformers", "unets")
"""Packages of diffusers.models whose classes are denoisers."""


def outlook(
    source: str, settings: Prune | None = None, *, subfolder: str | None = None, revision: str | None = None
) -> tuple[dict[str, Any], PruningPlan | None]:
    """Return what a denoiser is, what of it may be cut, and the plan that takes the same share of every group.

    Args:
        source: As for `load_meta_denoiser`; of a hub id only the config is fetched.
        settings: Kinds, target, rounding and limits; None: no plan.
        subfolder: Where the denoiser is in the source, if not in ``unet`` or ``transformer``.
        revision: Hub only.

    Returns:
        JSON types: ``params`` and ``macs`` (None if not known) of one call on ``input``, one sample; ``bytes`` by type;
        ``kinds``: groups, units, shares, how much of each was asked and got; ``free_share``: the parameters in no
        group but blocks; ``plan``: as `plan_figures`, and its
        ``bytes``, or None; ``notes``: what is not known, and why; ``groups``: every group. And the plan.

    Raises:
        PruningError: If there is no such model, it is no denoiser, or the target cannot be met or counted.
    """
    model = load_meta_denoiser(source, subfolder=subfolder, revision=revision)
    _check_denoiser(model)
    order = sorted(KINDS, key=lambda kind: (kind == "blocks", kind))  # blocks hold the others
    groups = sorted(find_groups(model), key=lambda group: order.index(group.kind))
    cost, words, note = _cost(model, groups)
    if settings is not None and settings.target.measure == "macs" and note:
        raise PruningError(f"target {settings.target}: {note}; ask for a share of the parameters, or a ratio")
    plan = None if settings is None else _plan(model, groups, cost, settings)
    cuts = cuts_of(plan or PruningPlan(), groups)
    asked: dict[str, float] = {}
    if plan is not None and settings is not None:
        chosen = [group for group in groups if group.kind in settings.kinds]
        dense = cost.macs() if settings.target.measure == "macs" else cost.params()
        ratio = (dense - plan.meta["goal"]) / prunable(chosen, cost, settings.target.measure)
        asked.update({kind: float(ratio) for kind in settings.kinds})
    units = [group for group in groups if group.kind != "blocks"]
    found = {
        "model": source,
        "class": type(model).__name__,
        "input": words,
        "params": cost.params(),
        "macs": None if note else cost.macs(),
        "bytes": sizes(model),
        "kinds": kinds_of(cost, cuts, asked),
        "free_share": 1 - prunable(units, cost, "params") / cost.params(),
        "plan": None,
        "notes": [note] if note else [],
        "groups": cuts,
    }
    if plan is not None:
        figures = plan_figures(plan, groups)
        found["plan"] = {**figures, "bytes": sizes(model, gone=cost.params() - figures["params"])}
        if note:
            plan = replace(plan, meta={key: value for key, value in plan.meta.items() if key != "macs"})
    return found, plan


def kinds_of(
    cost: CostModel, cuts: list[dict[str, Any]], asked: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return one row per kind: how much of the model it is, how much of it goes, and how much was to go.

    A share of the MACs is None where these are not known. ``got_ratio`` counts parameters.
    """
    params, macs, all_macs = cost.unit_costs("params"), cost.unit_costs("macs"), cost.macs()

    def total(costs: dict[str, float], own: list[dict[str, Any]], key: str) -> float:
        return sum(costs[cut["group"]] * cut[key] for cut in own)

    return [
        {
            "kind": kind,
            "groups": len(own),
            "units": sum(cut["total"] for cut in own),
            "removed": sum(cut["total"] - cut["kept"] for cut in own),
            "params_share": total(params, own, "total") / cost.params(),
            "macs_share": total(macs, own, "total") / all_macs if all_macs else None,
            "asked_ratio": (asked or {}).get(kind),
            "got_ratio": 1 - total(params, own, "kept") / total(params, own, "total"),
        }
        for kind, own in by_kind(cuts).items()
    ]


def sizes(model: nn.Module, *, gone: int = 0) -> dict[str, int]:
    """Return the bytes of a file of the model by type, buffers that are saved included, `gone` parameters left out.

    ``int8`` holds every weight in one byte, scales left out.
    """
    values = sum(tensor.numel() for tensor in model.state_dict().values()) - gone
    return {name: getattr(torch, name).itemsize * values for name in (*DTYPES, INT8)}


def _check_denoiser(model: ModelMixin) -> None:
    package = type(model).__module__.split(".")
    if not set(DENOISERS) & set(package):
        raise PruningError(
            f"{type(model).__name__} is no denoiser: diffusers keeps those in models/{' and models/'.join(DENOISERS)}, "
            f"this one in {'/'.join(package[1:-1])}"
        )


def _cost(model: ModelMixin, groups: Sequence[PrunableGroup]) -> tuple[CostModel, str | None, str | None]:
    """Return what plans cost, the words for the input, and why the MACs are not known, if they are not."""
    words = None
    try:
        native = native_input(model)
        words = native.words
        return CostModel.trace(model, native.call, groups), words, None
    except PruningError as error:
        return CostModel.untraced(model, groups), words, f"MACs are not known: {error}"


def _plan(
    model: ModelMixin, groups: Sequence[PrunableGroup], cost: CostModel, settings: Prune
) -> PruningPlan:
    settings.check("plan")
    chosen = [group for group in groups if group.kind in settings.kinds]
    if not chosen:
        have = ", ".join(sorted({group.kind for group in groups})) or "none at all"
        raise PruningError(
            f"{type(model).__name__} has no groups of kind {', '.join(settings.kinds)}; it has {have}"
        )
    return allocate(chosen, None, cost, settings, base_hash=config_hash(config_of(model)))
