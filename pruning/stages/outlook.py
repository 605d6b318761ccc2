"""What a denoiser is at real size and what a plan would make of it, on the meta device: no weights, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn

from pruning.allocation import CostModel, allocate, prunable
from pruning.errors import PruningError
from pruning.groups import KINDS, find_groups
from pruning.groups.modulation import break_even, modulation_layers, ranks_that_save, repeated
from pruning.models import load_meta_denoiser, native_input
from pruning.settings import DTYPES, Prune, Target
from pruning.stages.planning import by_kind, cuts_of, plan_figures
from pruning.types import PrunableGroup, PruningPlan, config_hash, config_of

INT8 = "int8"
DENOISERS = ("transformers", "unets")
"""Packages of diffusers.models whose classes are denoisers."""


def outlook(
    source: str,
    settings: Prune | None = None,
    *,
    modulation_rank: int | None = None,
    share_embedders: bool = False,
    subfolder: str | None = None,
    revision: str | None = None,
) -> tuple[dict[str, Any], PruningPlan | None]:
    """Return what a denoiser is, what of it may be cut, and the plan that takes the same share of every group.

    Args:
        source: As for `load_meta_denoiser`; of a hub id only the config is fetched.
        settings: Kinds, target, rounding and limits; None: no units go.
        modulation_rank: Rank that every modulation layer takes in which it saves parameters.
        share_embedders: Embedders that all blocks repeat are one; that their weights are equal is taken on trust.
        subfolder: Where the denoiser is in the source, if not in ``unet`` or ``transformer``.
        revision: Hub only.

    Returns:
        JSON types: ``params`` and ``macs`` (None if not known) of one call on ``input``, one sample; ``bytes`` by type;
        ``kinds``: groups, units, shares, how much of each was asked and got; ``free_share``: the parameters in no
        group but blocks; ``modulation`` and ``repeated_embedders``: shares of the parameters; ``plan``: as
        `plan_figures`, and its ``bytes``, or None without anything asked; ``notes``: what is not known, and why;
        ``groups``: every group. And the plan.

    Raises:
        PruningError: If there is no such model, it is no denoiser, or the target cannot be met or counted.
    """
    model = load_meta_denoiser(source, subfolder=subfolder, revision=revision)
    _check_denoiser(model)
    order = sorted(KINDS, key=lambda kind: (kind == "blocks", kind))  # blocks hold the others
    groups = sorted(find_groups(model), key=lambda group: order.index(group.kind))
    cost, words, note = _cost(model, groups)
    if settings is not None and settings.target.macs is not None and note:
        raise PruningError(f"target {settings.target}: {note}; ask for a share of the parameters, or a ratio")
    start = _start(model, groups, modulation_rank, share_embedders)
    nothing = settings is None and not (start.ranks or start.shared)
    plan = None if nothing else _plan(groups, cost, settings, start)
    cuts = cuts_of(plan or PruningPlan(), groups)
    units = [group for group in groups if group.kind != "blocks"]
    found = {
        "model": source,
        "class": type(model).__name__,
        "input": words,
        "params": cost.params(),
        "macs": None if note else cost.macs(),
        "bytes": sizes(model),
        "kinds": kinds_of(cost, cuts, _asked_ratios(groups, cost, settings, plan)),
        "free_share": 1 - prunable(units, cost, "params") / cost.params(),
        **_smaller_shares(model, groups),
        "plan": None,
        "notes": [note] if note else [],
        "groups": cuts,
    }
    if plan is not None:
        figures = plan_figures(plan, groups)
        asked = [figures["asked"]] if settings else []
        asked += [f"modulation layers at rank {modulation_rank}"] if start.ranks else []
        asked += ["repeated embedders shared"] if start.shared else []
        gone = cost.params() - figures["params"]
        found["plan"] = {**figures, "bytes": sizes(model, gone=gone), "asked": ", ".join(asked)}
        if note:
            plan = replace(plan, meta={key: value for key, value in plan.meta.items() if key != "macs"})
    return found, plan


def kinds_of(
    cost: CostModel, cuts: list[dict[str, Any]], asked: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return one row per kind: how much of the model it is, how much of it goes, and how much was to go.

    A share of the MACs is None where these are not known. ``got_ratio`` counts parameters. What several blocks hold
    counts once.
    """
    all_macs = cost.macs()
    of_units = {measure: cost.unit_costs(measure) for measure in ("params", "macs")}

    def worth(measure: str, own: list[dict[str, Any]], count: Callable[[dict[str, Any]], int]) -> float:
        if own[0]["kind"] == "blocks":
            blocks = PruningPlan(removed_blocks=tuple(sorted(cut["module"] for cut in own if count(cut))))
            total = cost.macs if measure == "macs" else cost.params
            return total() - total(blocks)
        return sum(of_units[measure][cut["group"]] * count(cut) for cut in own)

    def units(cut: dict[str, Any]) -> int:
        return cut["total"]

    def gone(cut: dict[str, Any]) -> int:
        return cut["total"] - cut["kept"]

    return [
        {
            "kind": kind,
            "groups": len(own),
            "units": sum(map(units, own)),
            "removed": sum(map(gone, own)),
            "params_share": worth("params", own, units) / cost.params(),
            "macs_share": worth("macs", own, units) / all_macs if all_macs else None,
            "asked_ratio": (asked or {}).get(kind),
            "got_ratio": worth("params", own, gone) / worth("params", own, units),
        }
        for kind, own in by_kind(cuts).items()
    ]


def sizes(model: nn.Module, *, gone: int = 0) -> dict[str, int]:
    """Return the bytes of a file of the model by type, buffers that are saved included, `gone` parameters left out.

    ``int8`` holds every weight in one byte, scales left out.
    """
    values = sum(tensor.numel() for tensor in model.state_dict().values()) - gone
    return {name: getattr(torch, name).itemsize * values for name in (*DTYPES, INT8)}


def _asked_ratios(
    groups: Sequence[PrunableGroup], cost: CostModel, settings: Prune | None, plan: PruningPlan | None
) -> dict[str, float]:
    """Return by kind the share of its units that the target asks for; empty without one."""
    if plan is None or settings is None or not settings.target.is_counted_alone:
        return {}
    measure = settings.target.measure
    chosen = [group for group in groups if group.kind in settings.kinds]
    whole = plan.before_cuts()
    before = cost.macs(whole) if measure == "macs" else cost.params(whole)
    ratio = max(0.0, before - plan.meta["goal"]) / prunable(chosen, cost, measure)
    return dict.fromkeys(settings.kinds, float(ratio))


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


def _start(
    model: ModelMixin, groups: Sequence[PrunableGroup], modulation_rank: int | None, share_embedders: bool
) -> PruningPlan:
    """Return the plan in which weights take the smaller forms that are asked for.

    Raises:
        PruningError: For a rank below 1, or a form that nothing in the model can take.
    """
    name, ranks, shared = type(model).__name__, {}, []
    if modulation_rank is not None:
        if modulation_rank < 1:
            raise PruningError(f"modulation rank is {modulation_rank}; it must be at least 1")
        layers = modulation_layers(model, groups)
        ranks = ranks_that_save(model, layers, lambda _: modulation_rank)
        if not ranks:
            most = ranks_that_save(model, layers, break_even).values()
            why = f"rank {modulation_rank} saves nothing; at most {max(most)} does" if most else "it has none"
            raise PruningError(f"modulation layers of {name}: {why}")
    if share_embedders:
        shared = repeated(model, groups)
        if not shared:
            raise PruningError(f"{name} repeats no embedder in its blocks, so that none can be shared")
    return PruningPlan(base_hash=config_hash(config_of(model)), ranks=ranks, shared=tuple(shared))


def _smaller_shares(model: ModelMixin, groups: Sequence[PrunableGroup]) -> dict[str, float]:
    """Return which share of the parameters modulation layers have, and repetitions of embedders."""

    def share(paths: Iterable[str]) -> float:
        return sum(p.numel() for path in paths for p in model.get_submodule(path).parameters()) / total

    total = sum(p.numel() for p in model.parameters())
    return {
        "modulation": share(group.module for group in modulation_layers(model, groups)),
        "repeated_embedders": share(path for paths in repeated(model, groups) for path in paths[1:]),
    }


def _plan(
    groups: Sequence[PrunableGroup], cost: CostModel, settings: Prune | None, start: PruningPlan
) -> PruningPlan:
    if settings is None:
        return allocate([], None, cost, Prune(target=Target(ratio=0.0), scope="local"), start=start)
    settings.check("plan")
    chosen = [group for group in groups if group.kind in settings.kinds]
    if not chosen:
        have = ", ".join(sorted({group.kind for group in groups})) or "none at all"
        raise PruningError(f"the model has no groups of kind {', '.join(settings.kinds)}; it has {have}")
    return allocate(chosen, None, cost, settings, start=start)
