"""One module in the place of several: the others hand their calls on to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pruning.errors import PruningError
from pruning.types import inside


class Shared(nn.Module):
    """Stands where a copy of another module was, has no parameters and calls that other one.

    Args:
        owner: The module that is called; part of the model at another place.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self._held = (owner,)  # in a tuple, so that it is no part of this module
        self.training = owner.training

    @property
    def owner(self) -> nn.Module:
        """The module that is called."""
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the owner returns."""
        return self.owner(*args, **kwargs)


def share(model: nn.Module, owners: Mapping[str, str]) -> None:
    """Let modules of `model` be served by others, in place; path -> path of the owner."""
    for path, owner in owners.items():
        model.set_submodule(path, Shared(model.get_submodule(owner)))


def settle(model: nn.Module) -> None:
    """Give an owner that is no longer part of `model` the place of the first module that it serves."""
    present = {id(module) for module in model.modules()}
    for path, module in list(model.named_modules()):
        if isinstance(module, Shared) and id(module.owner) not in present:
            model.set_submodule(path, module.owner)
            present |= {id(part) for part in module.owner.modules()}


def owners_of(model: nn.Module) -> dict[str, str]:
    """Return which modules of a model are served by others, as `share` takes it."""
    paths = {id(module): path for path, module in model.named_modules()}
    return {
        path: paths[id(module.owner)] for path, module in model.named_modules() if isinstance(module, Shared)
    }


def check_sharing(where: str, model: nn.Module, path: str, owner: str) -> None:
    """Raise PruningError, beginning with `where`, unless the module at `owner` may serve in the place of `path`."""
    tree = dict(model.named_modules())
    for name in (path, owner):
        if not name or name not in tree:
            raise PruningError(f"{where}: {name!r} is no module of {type(model).__name__}")
    if inside(path, owner) or inside(owner, path):
        raise PruningError(f"{where}: {owner!r} and {path!r} lie in one another")
    one, other = tree[owner], tree[path]
    if type(one) is not type(other):
        raise PruningError(
            f"{where}: {path!r} is a {type(other).__name__}, {owner!r} a {type(one).__name__}; only modules of one "
            "class may become one"
        )
    shapes = [{name: tuple(t.shape) for name, t in module.state_dict().items()} for module in (one, other)]
    if not shapes[0] or shapes[0] != shapes[1]:
        raise PruningError(f"{where}: {path!r} and {owner!r} are not of the same shapes, or have no weights")
