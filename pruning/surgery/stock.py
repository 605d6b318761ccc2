"""What is left of a model as an ordinary model: values of its config instead of identities, where it has words for it.

Lists that are gone through side by side share one count (``num_layers`` of Latte). In a UNet a stage counts its layers
(``layers_per_block``; one more on the way up), a layer its transformer blocks (``transformer_layers_per_block``), and
the middle may be none (``mid_block_type``). Whether a config says what is left is seen by building it on the meta
device: every parameter must have its place there, by name and by shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pruning.groups.reading.counts import shared_count
from pruning.groups.stages import DOWN, MIDDLE, UP
from pruning.models import stock_model
from pruning.surgery.config import write_config
from pruning.surgery.identity import IdentityBlock
from pruning.surgery.low_rank import LowRankLinear
from pruning.surgery.shared import Shared
from pruning.types import config_of, inside, lies_in

LAYERS, DEPTH, REVERSED = (
    "layers_per_block",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
)
SAMPLERS = ("downsamplers", "upsamplers")


@dataclass(frozen=True)
class _Step:
    """One way to say more of a model by its config: items of lists go, and values take their place.

    Attributes:
        gone: By path of a list, which of its items go; identities all of them.
        values: Entries of the config.
        middle: Whether the middle goes.
    """

    gone: Mapping[str, frozenset[int]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    middle: bool = False

    def moved(self, path: str) -> str | None:
        """Return where the module or parameter at `path` is afterwards; None if it goes."""
        if self.middle and inside(path, MIDDLE):
            return None
        names: list[str] = []
        before: list[str] = []
        for name in path.split("."):
            gone = self.gone.get(".".join(before), frozenset()) if name.isdigit() else frozenset()
            if gone and int(name) in gone:
                return None
            before.append(name)
            names.append(str(int(name) - sum(item < int(name) for item in gone)) if gone else name)
        return ".".join(names)


def as_stock(model: nn.Module, key: dict[str, Any]) -> None:
    """Let the config say what of the removed blocks it can; what it cannot stays in `key`, as identities."""
    if not key["removed_blocks"]:
        return
    ways = [_with_fewer_pairs]
    if isinstance(config_of(model).get("down_block_types"), (list, tuple)):
        ways = [_without_middle, _with_fewer_layers, _with_fewer_transformers]
    for find in ways:
        step = find(model)
        if step is not None and _fits(model, step, key):
            _take(model, step, key)


def _fits(model: nn.Module, step: _Step, key: Mapping[str, Any]) -> bool:
    """Tell whether a stock model of the step's config has a place for every parameter, and no other places."""
    built = stock_model(model, step.values)
    if built is None:
        return False
    cut = {
        where: record.get("parameters", {})
        for path, record in key["modules"].items()
        if (where := step.moved(path))
    }
    other = [name for name, module in model.named_modules() if isinstance(module, (LowRankLinear, Shared))]
    gone = [where for path in (*key["removed_blocks"], *other) if (where := step.moved(path))]

    stock = {name: p.shape for name, p in built.named_parameters() if not lies_in(name, gone)}
    left = {
        where: p.shape
        for name, p in model.named_parameters()
        if (where := step.moved(name)) and not lies_in(where, gone)
    }

    def recorded(name: str) -> bool:
        owner, _, own = name.rpartition(".")
        return own in cut.get(owner, ())

    if any(name not in left for name in stock) or any(
        name not in stock and not recorded(name) for name in left
    ):
        return False
    return all(recorded(name) or shape == left[name] for name, shape in stock.items())


def _take(model: Any, step: _Step, key: dict[str, Any]) -> None:
    for path, items in step.gone.items():
        siblings = model.get_submodule(path)
        for item in sorted(items, reverse=True):
            del siblings[item]
    if step.middle:
        setattr(model, MIDDLE, None)
    write_config(model, step.values)
    key["modules"] = {where: record for path, record in key["modules"].items() if (where := step.moved(path))}
    key["removed_blocks"] = [where for path in key["removed_blocks"] if (where := step.moved(path))]


def _nothing(module: Any) -> bool:
    """Tell whether nothing is left of a block: neither a factor nor a sum, only the stream."""
    if not isinstance(module, IdentityBlock):
        return False
    parts = module.removal.returns
    return all(part.factor == 1.0 and len(part.arguments) == 1 and not part.masks for part in parts)


def _with_fewer_pairs(model: Any) -> _Step | None:
    """Leave out the places at which nothing is left in any of the lists that share one count."""
    shared = shared_count(type(model))
    lists = [getattr(model, name, ()) for name in shared.lists] if shared else []
    if shared is None or any(len(items) != config_of(model).get(shared.field) for items in lists):
        return None
    places = range(len(lists[0]))
    gone = {k for k in places if all(_nothing(items[k]) for items in lists)}
    gone -= {0} if shared.first_differs or len(gone) == len(places) else set()
    if not gone:
        return None
    return _Step(dict.fromkeys(shared.lists, frozenset(gone)), {shared.field: len(places) - len(gone)})


def _without_middle(model: nn.Module) -> _Step | None:
    if "mid_block_type" not in config_of(model) or not _nothing(getattr(model, MIDDLE, None)):
        return None
    return _Step(values={"mid_block_type": None}, middle=True)


def _with_fewer_layers(model: Any) -> _Step | None:
    """Leave out the layers of which nothing is left, if every other one then is given the same skipped streams."""
    gone: dict[str, frozenset[int]] = {}
    down = [_Stage.of(model, DOWN, k) for k in range(len(model.down_blocks))]
    up = [_Stage.of(model, UP, k) for k in range(len(model.up_blocks))]
    for stage in (*down, *up):
        if stage is None or len(stage.gone) == stage.layers:
            return None
        gone |= dict.fromkeys(stage.lists, stage.gone)
    stages_down, stages_up = [s for s in down if s is not None], [s for s in up if s is not None]
    if not any(gone.values()) or not _same_skips(stages_down, stages_up):
        return None
    step = _Step({path: items for path, items in gone.items() if items})
    counts = [stage.layers - len(stage.gone) for stage in stages_down]
    return _Step(step.gone, {LAYERS: _one(counts), **_depths(model, step)})


@dataclass(frozen=True)
class _Stage:
    """A stage of a UNet.

    Attributes:
        lists: Paths of the lists that have one item for each of its layers.
        layers: How many there are.
        gone: Layers all of whose items are identities.
        sampled: Whether a sampler follows, whose output is skipped too.
    """

    lists: tuple[str, ...]
    layers: int
    gone: frozenset[int]
    sampled: bool

    @classmethod
    def of(cls, model: nn.Module, name: str, index: int) -> _Stage | None:
        """Return a stage; None for one that has other lists than one item for each layer."""
        path = f"{name}.{index}"
        stage = model.get_submodule(path)
        lists: Any = {
            n: m for n, m in stage.named_children() if isinstance(m, nn.ModuleList) and n not in SAMPLERS
        }
        layers = len(lists.get("resnets", ()))
        if not layers or any(len(items) != layers for items in lists.values()):
            return None
        gone = frozenset(k for k in range(layers) if all(_nothing(items[k]) for items in lists.values()))
        if name == UP and any(lists["resnets"][k].removal.channels is None for k in gone):
            return None  # no skipped stream goes with the layer
        sampled = bool(len(getattr(stage, "downsamplers", None) or ()))
        return cls(tuple(f"{path}.{n}" for n in lists), layers, gone, sampled)


def _same_skips(down: list[_Stage], up: list[_Stage]) -> bool:
    """Tell whether the layers that stay on the way up take the same streams when the others are not there.

    An identity on the way down skips the stream that was skipped before it once more.
    """
    value = 0
    skipped, left = [value], [value]
    for stage in down:
        for layer in range(stage.layers + stage.sampled):
            value += layer not in stage.gone
            skipped.append(value)
            left += [] if layer in stage.gone else [value]
    for stage in up:
        for layer in range(stage.layers):
            taken = skipped.pop() if skipped else None
            if layer not in stage.gone and (not left or left.pop() != taken):
                return False
    return not skipped and not left


def _with_fewer_transformers(model: nn.Module) -> _Step | None:
    """Leave out the transformer blocks that are identities."""
    if DEPTH not in config_of(model):
        return None
    gone: dict[str, frozenset[int]] = {}
    for path, module in model.named_modules():
        lists: Any = {n: m for n, m in module.named_children() if isinstance(m, nn.ModuleList)}
        blocks = lists.get("transformer_blocks", ())
        found = frozenset(
            k
            for k in range(len(blocks))
            if all(len(items) == len(blocks) and _nothing(items[k]) for items in lists.values())
        )
        if found:
            gone |= {f"{path}.{name}": found for name in lists}
    if not gone:
        return None
    step = _Step(gone)
    return _Step(gone, _depths(model, step))


def _depths(model: nn.Module, step: _Step) -> dict[str, Any]:
    """Return the config entries that count the transformer blocks of each layer, where they are not as before."""
    config = config_of(model)
    if DEPTH not in config:
        return {}
    down, up = _counted(model, DOWN, step), _counted(model, UP, step)[::-1]
    asked = config[DEPTH]
    before = asked if isinstance(asked, (list, tuple)) else [asked] * len(down)
    before = [
        old[0] if isinstance(old, (list, tuple)) else old for old in before
    ]  # of stages without transformers
    middle = _count(model, MIDDLE, step)  # it is as deep as the innermost stage
    if middle and not (down[-1] or up[-1]):
        before[-1] = middle[0]
    found: dict[str, Any] = {}
    if all(len({*one, *other}) <= 1 for one, other in zip(down, up, strict=True)):
        depths = [(one or other or [old])[0] for one, other, old in zip(down, up, before, strict=True)]
        found = {DEPTH: _one(depths), REVERSED: None}
    else:
        found[DEPTH] = [_one(one) if one else old for one, old in zip(down, before, strict=True)]
        found[REVERSED] = [_one(one) if one else old for one, old in zip(up, before, strict=True)][::-1]
    return {name: value for name, value in found.items() if _plain(config.get(name)) != _plain(value)}


def _counted(model: nn.Module, name: str, step: _Step) -> list[list[int]]:
    """Return for each stage how many transformer blocks its layers have; nothing for those without."""
    return [_count(model, f"{name}.{k}", step) for k, _ in model.get_submodule(name).named_children()]


def _count(model: nn.Module, stage: str, step: _Step) -> list[int]:
    owner: Any = model
    for name in stage.split("."):
        owner = getattr(owner, name, None)  # the middle may be none
    around, counts = getattr(owner, "attentions", None), []
    for k, layer in enumerate(around or ()):
        path = f"{stage}.attentions.{k}"
        if step.moved(path) and isinstance(getattr(layer, "transformer_blocks", None), nn.ModuleList):
            gone = step.gone.get(f"{path}.transformer_blocks", frozenset())
            counts.append(len(layer.transformer_blocks) - len(gone))
    return counts


def _one(values: list[Any]) -> Any:
    """Return the one value of a list if it has only one."""
    return values[0] if all(value == values[0] for value in values) else values


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
