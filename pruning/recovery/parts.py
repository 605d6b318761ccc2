"""What is trained of the slim model: all of it, low-rank adapters, or norms, biases and the output layers alone.

Whatever it is, the result is the model as it was built, with other numbers in it: adapters are merged into the weights
they belong to, and are gone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pruning.data import sample_generator
from pruning.errors import PruningError
from pruning.groups.reading.structure import has_own_forward
from pruning.models.outputs import tensors_in
from pruning.settings import ALL, LORA, Recover
from pruning.surgery.shared import Shared

ADAPTERS = 22
"""Stream of `sample_generator` that adapters begin with."""

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*ADAPTABLE, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding)
"""Modules whose ``weight`` is a matrix, whatever its shape."""


@contextmanager
def trained_parts(
    model: nn.Module, settings: Recover, seed: int, answer: Callable[[], Any]
) -> Iterator[nn.Module]:
    """Let only what `settings.train` names require gradients, of what did before; adapters are merged at the end.

    Where the block ends by an exception, adapters are taken off and the weights are those before.

    Args:
        model: In training order; changed in place.
        settings: What to train, and the adapters' rank and scale.
        seed: Of the adapters' first values.
        answer: Calls the model and returns what it puts out, with its graph.

    Raises:
        PruningError: If nothing would be trained.
    """
    could = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if settings.train == ALL:
            yield model
        elif settings.train == LORA:
            with _adapters(model, settings, seed, answer):
                yield model
        else:
            few = {id(p) for p in [*vectors(model), *output_weights(answer())]}
            for parameter in could:
                parameter.requires_grad_(id(parameter) in few)
            if not any(parameter.requires_grad for parameter in could):
                raise PruningError(
                    f"recovery: train={settings.train!r}: the model has no norm, bias or output layer that may be "
                    "trained; use train='all' or 'lora'"
                )
            yield model
    finally:
        for parameter in could:
            parameter.requires_grad_(True)


def vectors(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters with at most one axis longer than 1 that are no layer's weight: of norms, biases, gates."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, WEIGHTED)}
    return [p for p in model.parameters() if id(p) not in matrices and sum(size > 1 for size in p.shape) <= 1]


def output_weights(output: Any) -> list[nn.Parameter]:
    """Return the weights that an output is nearest to: of each of its tensors, going back, the first layers met.

    Args:
        output: What a model put out, with its graph.
    """
    found: dict[int, nn.Parameter] = {}
    left: list[Any] = [tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None]
    seen = {*left}
    while left:
        before = [node for node, _ in left.pop().next_functions if node is not None]
        weights = [leaf for node in before if (leaf := _leaf(node)) is not None and leaf.ndim > 1]
        found |= {id(weight): weight for weight in weights}
        if not weights:
            left += [node for node in before if node not in seen]
            seen |= {*before}
    return list(found.values())


def _leaf(node: Any) -> nn.Parameter | None:
    """Return the parameter that a node of the graph brings, as it is or transposed, viewed or cast; None for others."""
    while not hasattr(node, "variable"):
        before = [one for one, _ in node.next_functions if one is not None]
        if len(before) != 1:
            return None
        (node,) = before
    return node.variable if isinstance(node.variable, nn.Parameter) else None


def adaptable(model: nn.Module) -> list[str]:
    """Return the paths of the layers that can have an adapter which merges into exactly one weight.

    These are PyTorch's own linear and convolution layers whose weight may be trained, but for those whose weight other
    code reads (in PyTorch's attention and transformer layers, weights of two layers, layers that serve elsewhere) and
    convolutions for which peft has none: in groups, dilated, padded otherwise than with zeros, in three dimensions
    1 x 1.
    """
    modules = dict(model.named_modules())
    served = {id(module.owner) for module in modules.values() if isinstance(module, Shared)}
    uses = Counter(id(module.weight) for module in modules.values() if isinstance(module, WEIGHTED))
    return [
        path
        for path, module in modules.items()
        if isinstance(module, ADAPTABLE)
        and not has_own_forward(module)
        and module.weight.requires_grad
        and uses[id(module.weight)] == 1
        and id(module) not in served
        and (isinstance(module, nn.Linear) or _is_plain(module))
        and not any(_reads_weights(modules[above]) for above in _above(path) if above in modules)
    ]


def _is_plain(layer: Any) -> bool:
    """Tell whether peft has an adapter for a convolution, and merges it right."""
    taken_for_2d = layer.weight.ndim == 5 and tuple(layer.weight.shape[2:4]) == (
        1,
        1,
    )  # by peft, when it merges
    return (
        layer.groups == 1 and {*layer.dilation} == {1} and layer.padding_mode == "zeros" and not taken_for_2d
    )


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _reads_weights(module: nn.Module) -> bool:
    """Tell whether a module is one of PyTorch's that computes with the weights of its layers, not by calling them."""
    plain = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return type(module).__module__.startswith("torch.") and not isinstance(module, plain)


@torch.no_grad()
def _called(model: nn.Module, paths: Sequence[str], answer: Callable[[], Any]) -> list[str]:
    """Return the layers that the model calls when it answers; of others other code reads the weight, or nobody."""
    called: set[str] = set()

    def see(path: str, *_: object) -> None:
        called.add(path)

    with ExitStack() as stack:
        for path in paths:
            layer = model.get_submodule(path)
            stack.callback(layer.register_forward_pre_hook(partial(see, path)).remove)
        answer()
    return [path for path in paths if path in called]


@contextmanager
def _adapters(model: nn.Module, settings: Recover, seed: int, answer: Callable[[], Any]) -> Iterator[None]:
    """Put adapters of Hu et al. (arXiv 2106.09685) on all layers that can have one and are called."""
    from peft import LoraConfig, LoraModel

    paths = _called(model, adaptable(model), answer)
    if not paths:
        raise PruningError(
            "recovery: train='lora': the model has no linear or convolution layer that can have an adapter; use "
            "train='all'"
        )
    alpha: Any = settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=alpha,
        target_modules="|".join(map(re.escape, paths)),  # a pattern of whole paths: of a list, ends would do
    )
    marked = {"peft_config"} - {*vars(model)}
    # The caller restores the global generator.
    torch.manual_seed(sample_generator(seed, 0, ADAPTERS).initial_seed())
    tuner = LoraModel(model, {"default": config}, "default")  # type: ignore[arg-type]
    for path in paths:
        _stand_in(model.get_submodule(path))
    try:
        yield
        tuner.merge_and_unload()
    except BaseException:
        tuner.unload()
        raise
    finally:
        for name in marked:
            vars(model).pop(name, None)


def _stand_in(adapter: Any) -> None:
    """Let an adapter be asked and called as its layer: for its sizes, and with its input by name."""
    for name in adapter.base_layer.__constants__:
        setattr(adapter, name, getattr(adapter.base_layer, name))

    def by_position(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((kwargs.pop("input"), *args), kwargs) if "input" in kwargs else None

    adapter.register_forward_pre_hook(by_position, with_kwargs=True)
