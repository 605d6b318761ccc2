"""Where each weight of a cut model comes from: noted while the model is cut, and read piece by piece afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.groups.words import LAYERS
from pruning.models.loading import check_values
from pruning.models.pages import FilePages, give_back, read_ahead
from pruning.models.widening import is_narrower
from pruning.surgery.low_rank import LowRankLinear, factorise
from pruning.surgery.storage import take
from pruning.types import PruningPlan

PIECE = 1 << 25
"""Bytes of a weight that are read at a time."""


@dataclass(frozen=True)
class Origin:
    """A weight of the cut model: where it is read, and what is kept of it.

    Attributes:
        name: In the dense model, for messages.
        read: Returns the whole weight, maybe not in memory yet.
        shape: Of the whole weight.
        dtype: That it is taken in.
        masks: By dimension, which entries are kept.
        pages: Of the files in which the weight lies, if that is known.
    """

    name: str
    read: Callable[[], Tensor]
    shape: torch.Size
    dtype: torch.dtype
    masks: Mapping[int, Tensor] = field(default_factory=dict)
    pages: FilePages | None = None

    @property
    def kept_shape(self) -> list[int]:
        """Shape of what is kept."""
        return [
            int(self.masks[dim].sum()) if dim in self.masks else size for dim, size in enumerate(self.shape)
        ]

    def pieces(self, where: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield what is kept, a piece after the other, each contiguous and of type `dtype`.

        Raises:
            PruningError: For NaN or infinity, beginning with `where`.
        """
        value = self.read().detach().reshape(self.shape or (1,))
        pages = self.pages or FilePages()  # what was read just now may have been mapped just now
        of_file = pages.hold(value)
        if not value.numel():
            return
        rows = max(1, PIECE * len(value) // max(1, value.nbytes))
        parts = value.split(rows)
        kept = self.masks.get(0, torch.ones(len(value), dtype=torch.bool)).split(rows)
        for index, (part, mask) in enumerate(zip(parts, kept, strict=True)):
            if not bool(mask.any()):
                continue
            if of_file:
                read_ahead(parts[index : index + 2])
            check_values(part, where, self.name)
            found = part if bool(mask.all()) else take(part, 0, mask)
            for dim, own in self.masks.items():
                found = found if dim == 0 else take(found, dim, own)
            yield found.to(self.dtype).to("cpu", dtype).contiguous()
            if of_file:
                give_back([part])


class Origins:
    """Notes where the weights of a model come from while `apply_with` cuts it; cut weights then hold no values.

    Args:
        model: A dense model, whose weights may lie in files; modules in it are changed in place.
        changed: Weights by name in the place of the model's own; a bias may be one that the model lacks, and a layer to
            which `plan` gives a rank may be given as the two of its low-rank form (``<path>.down.weight``,
            ``<path>.up.weight``; its bias as ``<path>.bias`` or ``<path>.up.bias``).
        plan: What the model will be cut to.
        dtype: Type that narrower weights are taken in; None: their own.

    Attributes:
        new_biases: Paths of the layers that have a bias now and had none.

    Raises:
        PruningError: For a name or a shape in `changed` that the model has no place for.
    """

    def __init__(
        self,
        model: nn.Module,
        changed: Mapping[str, Tensor],
        plan: PruningPlan,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model, self._changed, self._ranks, self._dtype = model, changed, plan.ranks, dtype
        self._of: dict[int, tuple[Tensor, Origin]] = {}
        self._pages = FilePages()
        self.new_biases = self._add_biases()
        weights = model.state_dict(keep_vars=True)
        parts = {f"{path}.{part}" for path in plan.ranks for part in ("up.weight", "down.weight", "up.bias")}
        for name in changed:
            if name not in weights and name not in parts:
                raise PruningError(f"changed[{name!r}]: {type(model).__name__} has no such weight")
        for name, tensor in weights.items():
            self._note(tensor, self._origin(name, tensor, lambda value=tensor: value))

    def _add_biases(self) -> list[str]:
        """Give layers the biases that `changed` holds and they lack, without values; return the paths of the layers."""
        tree, found = dict(self._model.named_modules()), []
        for name in self._changed:
            path, _, own = name.rpartition(".")
            module = tree.get(path)
            if own == "bias" and isinstance(module, LAYERS) and module.bias is None:
                weight = cast(Tensor, module.weight)
                bias = torch.empty(len(weight), dtype=weight.dtype, device="meta")
                module.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
                found.append(path)
        return found

    def _origin(self, name: str, tensor: Tensor, read: Callable[[], Tensor]) -> Origin:
        """Return the origin of a weight: what `changed` holds under its name, else what `read` returns."""
        dtype = tensor.dtype
        if self._dtype is not None and is_narrower(tensor, self._dtype):
            dtype = self._dtype
        if name not in self._changed:
            return Origin(name, read, tensor.shape, dtype, pages=self._pages)
        shape = self._changed[name].shape
        if shape != tensor.shape:
            raise PruningError(
                f"changed[{name!r}]: its shape is {list(shape)}, and that of the weight {list(tensor.shape)}"
            )
        return Origin(f"changed[{name!r}]", lambda: self._changed[name], shape, dtype)

    def take_ranks(self) -> None:
        """Give layers their low-rank forms: those in `changed`, else the best where nothing is known of the inputs."""
        for path, rank in self._ranks.items():
            layer = self._model.get_submodule(path)
            if not isinstance(layer, nn.Linear):
                continue  # it has that form already
            form = LowRankLinear.empty(layer, rank)
            factors = _Factors(self.of(layer.weight), rank)
            self._model.set_submodule(path, form)
            given = [part for part in ("up", "down") if f"{path}.{part}.weight" in self._changed]
            if len(given) == 1:
                raise PruningError(
                    f"changed: of the low-rank form of {path!r} there is only {given[0]}.weight"
                )
            for part in ("up", "down"):
                weight = form.get_submodule(part).get_parameter("weight")
                self._note(weight, self._origin(f"{path}.{part}.weight", weight, factors.reader(part)))
            if layer.bias is not None and f"{path}.up.bias" in self._changed:
                self._note(layer.bias, self._origin(f"{path}.up.bias", layer.bias, self.of(layer.bias).read))

    def cut(self, module: nn.Module, name: str, masks: dict[int, Tensor]) -> None:
        """Note what is kept of a parameter, and put one of that shape without values in its place."""
        old = module.get_parameter(name)
        origin = replace(self.of(old), masks=masks)
        value = torch.empty(origin.kept_shape, dtype=old.dtype, device="meta")
        new = nn.Parameter(value, requires_grad=old.requires_grad)
        setattr(module, name, new)
        self._note(new, origin)

    def of(self, tensor: Tensor) -> Origin:
        """Return where a weight of the model comes from."""
        return self._of[id(tensor)][1]

    def _note(self, tensor: Tensor, origin: Origin) -> None:
        self._of[id(tensor)] = tensor, origin  # held, so that no other tensor gets its id


class _Factors:
    """The two weights of a low-rank form, computed when one is asked for; each is held until it is taken."""

    def __init__(self, of: Origin, rank: int) -> None:
        self._of, self._rank = of, rank
        self._held: dict[str, Tensor] = {}

    def reader(self, part: str) -> Callable[[], Tensor]:
        return lambda: self._take(part)

    def _take(self, part: str) -> Tensor:
        if part not in self._held:
            layer = nn.Linear(self._of.shape[1], self._of.shape[0], bias=False, device="meta")
            value = self._of.read().detach()
            check_values(value, "low-rank form", self._of.name)
            layer.weight = nn.Parameter(value.to(self._of.dtype), requires_grad=False)
            found = factorise(layer, self._rank)
            self._held = {"up": found.up.weight, "down": found.down.weight}
            if (self._of.pages or FilePages()).hold(value):
                give_back([value])
        return self._held.pop(part)
