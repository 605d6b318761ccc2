"""Weights in a smaller form: what a plan says of low-rank layers and shared modules, done, recorded and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pruning.errors import PruningError, shown
from pruning.surgery.low_rank import LowRankLinear, check_rank, factorise
from pruning.surgery.shared import Shared, check_sharing, owners_of, settle, share
from pruning.types import PRUNING_KEY, PrunableGroup, PruningPlan, inside, lies_in, parameters_of

RANKS, SHARED = "ranks", "shared"


def check_smaller(model: nn.Module, groups: Sequence[PrunableGroup], plan: PruningPlan) -> None:
    """Raise PruningError, naming the module and the rule, unless a plan's smaller forms fit `model`."""
    tree = dict(model.named_modules())
    cut = parameters_of(groups)
    for path, rank in plan.ranks.items():
        where = f"plan gives {path!r} a rank"
        if path not in tree:
            raise PruningError(f"{where}: it is no module of {type(model).__name__}")
        if any(inside(name, path) for name in cut):
            raise PruningError(f"{where}: a group has its channels")
        if isinstance(tree.get(path.rpartition(".")[0]), LowRankLinear):
            raise PruningError(f"{where}: it is part of a low-rank form already")
        check_rank(where, tree[path], rank)
    owners, named = owners_of(model), [path for paths in plan.shared for path in paths]
    for paths in plan.shared:
        for path in paths[1:]:
            check_sharing(f"plan shares {path!r}", model, path, paths[0])
            for served, owner in owners.items():
                if inside(owner, path) and not inside(served, path):
                    raise PruningError(
                        f"plan shares {path!r}: {owner!r} serves in the place of {served!r}; name {path!r} first"
                    )
        if taken := [name for name in (*cut, *plan.ranks) if any(inside(name, path) for path in paths)]:
            raise PruningError(
                f"plan shares {paths[0]!r}, in which {taken[0]!r} takes a smaller form by itself"
            )
    for path in named:
        if named.count(path) > 1 or lies_in(path.rpartition(".")[0], named):
            raise PruningError(f"plan shares {path!r}: it is named twice, or lies in another that is shared")


class Smaller:
    """The modules of a model that a plan gives a smaller form, wherever they are once blocks have gone.

    Args:
        model: Before blocks go.
        plan: Checked.
    """

    def __init__(self, model: nn.Module, plan: PruningPlan) -> None:
        self._model = model
        self._ranks = {
            id(model.get_submodule(path)): rank for path, rank in plan.ranks.items() if not plan.removes(path)
        }
        served = plan.served_by()
        self._served = {
            id(model.get_submodule(path)): model.get_submodule(owner) for path, owner in served.items()
        }

    def take(self) -> None:
        """Give them their form, in place."""
        for path, module in list(self._model.named_modules()):
            rank = self._ranks.get(id(module))
            if rank is not None and isinstance(module, nn.Linear):
                self._model.set_submodule(path, factorise(module, rank))
            if id(module) in self._served:
                self._model.set_submodule(path, Shared(self._served[id(module)]))
        settle(self._model)


def record(model: nn.Module, key: dict[str, Any]) -> None:
    """Write into the config entry which layers of a model are low-rank and which modules others serve."""
    low = {path: module.rank for path, module in model.named_modules() if isinstance(module, LowRankLinear)}
    for name, found in ((RANKS, low), (SHARED, owners_of(model))):
        key.pop(name, None)
        if found:
            key[name] = found


def check_entry(model: nn.Module, entry: Mapping[str, Any], removed: Sequence[str]) -> None:
    """Raise PruningError, naming the first fault, unless a stock model can take the smaller forms of a config entry."""
    ranks, shared = entry.get(RANKS, {}), entry.get(SHARED, {})
    tree, owners = dict(model.named_modules()), owners_of(model)
    for name, found in ((RANKS, ranks), (SHARED, shared)):
        if not isinstance(found, Mapping) or not all(isinstance(path, str) for path in found):
            raise PruningError(f"{PRUNING_KEY}.{name}: must map module paths, found {shown(found)}")
        for path in found:
            if path not in tree or any(inside(path, block) for block in removed):
                raise PruningError(f"{PRUNING_KEY}.{name}: {path!r} is no module of {type(model).__name__}")
    for path, rank in ranks.items():
        check_rank(f"{PRUNING_KEY}.{RANKS}[{path!r}]", tree[path], rank)
    for path, owner in shared.items():
        place = f"{PRUNING_KEY}.{SHARED}[{path!r}]"
        if not isinstance(owner, str) or any(inside(owner, other) for other in (*shared, *removed)):
            raise PruningError(
                f"{place}: must be served by a module that no other serves, found {shown(owner)}"
            )
        if any(inside(name, path) or inside(path, name) for name in (*ranks, *shared) if name != path):
            raise PruningError(f"{place}: it lies in another module that takes a smaller form, or holds one")
        if owners.get(path) != owner:
            check_sharing(place, model, path, owner)


def rebuild(model: nn.Module, entry: Mapping[str, Any]) -> None:
    """Give a stock model the smaller forms that a config entry records; twice changes nothing."""
    for path, rank in entry.get(RANKS, {}).items():
        if isinstance(layer := model.get_submodule(path), nn.Linear):
            model.set_submodule(path, LowRankLinear.empty(layer, rank))
    owners = owners_of(model)
    share(model, {path: owner for path, owner in entry.get(SHARED, {}).items() if path not in owners})
