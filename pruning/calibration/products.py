"""Seeing products with single matrices of a stack, such as those of experts, where no module is called for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.errors import PruningError
from pruning.types import matrix_of, parameter_path

OnOperand = Callable[[Tensor], None]

PRODUCTS = {torch.matmul, torch.mm, F.linear, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
GROUPED = {
    getattr(module, name)
    for module in (F, torch)
    for name in ("grouped_mm", "_grouped_mm")
    if hasattr(module, name)
}


@dataclass
class _Stack:
    """A parameter that is watched: who is told what enters and what leaves each of its matrices, by index."""

    parameter: nn.Parameter
    inputs: dict[int, OnOperand] = field(default_factory=dict)
    outputs: dict[int, OnOperand] = field(default_factory=dict)
    seen: bool = False


class ProductCapture:
    """Context manager that tells what enters and what leaves the products with matrices of stacks.

    Results do not change. Rows that go through all matrices in one grouped product are told matrix by matrix.

    Args:
        model: The denoiser.
        inputs: Who is told of the left operands, (rows, channels), by the path of the matrix.
        outputs: Who is told of the results.
    """

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, OnOperand], outputs: Mapping[str, OnOperand]
    ) -> None:
        self._model = model
        self._stacks: dict[str, _Stack] = {}
        for path, tell in inputs.items():
            stack, index = self._find(path)
            stack.inputs[index] = tell
        for path, tell in outputs.items():
            stack, index = self._find(path)
            stack.outputs[index] = tell
        self._open: ExitStack | None = None

    def _find(self, path: str) -> tuple[_Stack, int]:
        whole = parameter_path(path)
        parameter = self._model.get_parameter(whole)
        stack = self._stacks.setdefault(whole, _Stack(parameter))
        return stack, int(matrix_of(parameter, path).storage_offset()) // parameter.stride(0)

    def __enter__(self) -> ProductCapture:
        with ExitStack() as stack:
            by_module: defaultdict[str, list[str]] = defaultdict(list)
            for path in self._stacks:
                by_module[path.rpartition(".")[0]].append(path)
            for owner, paths in by_module.items():
                module = self._model.get_submodule(owner)
                stack.callback(module.register_forward_hook(self._check(paths)).remove)
            if self._stacks:
                stack.enter_context(_SeeProducts(self._stacks.values()))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open is not None:
            self._open.close()

    def _check(self, paths: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for path in paths:
                if not self._stacks[path].seen:
                    raise PruningError(
                        f"{path!r} is a stack of matrices, but {type(module).__name__} multiplies with none of them by "
                        "matmul, linear or grouped_mm, so what they read cannot be seen; leave its group out, or "
                        "switch its own kernels off while calibrating"
                    )

        return hook


class _SeeProducts(TorchFunctionMode):
    def __init__(self, stacks: Iterable[_Stack]) -> None:
        super().__init__()
        self._stacks = {id(stack.parameter): stack for stack in stacks}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if len(args) > 1 and func in PRODUCTS and isinstance(right := args[1], Tensor):
            stack = self._stacks.get(id(right._base))
            if stack is not None:
                return self._single(stack, func, args, kwargs)
        if len(args) > 1 and func in GROUPED and (stack := self._stacks.get(id(args[1]))) is not None:
            return self._grouped(stack, func, args, kwargs)
        return func(*args, **kwargs)

    def _single(self, stack: _Stack, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = args[1].storage_offset() // stack.parameter.stride(0)
        stack.seen = True
        if index in stack.inputs:
            stack.inputs[index](args[0])
        result = func(*args, **kwargs)
        if index in stack.outputs:
            stack.outputs[index](result)
        return result

    def _grouped(self, stack: _Stack, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the operands apart and put them together again, so that gradients by the parts are known."""
        ends = (kwargs["offs"] if "offs" in kwargs else args[2]).tolist()
        sizes = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        stack.seen = True
        parts = self._told(args[0], sizes, stack.inputs)
        result = func(torch.cat(parts), *args[1:], **kwargs)
        return torch.cat(self._told(result, sizes, stack.outputs))

    @staticmethod
    def _told(rows: Tensor, sizes: list[int], told: Mapping[int, OnOperand]) -> list[Tensor]:
        parts = list(rows.split([*sizes, len(rows) - sum(sizes)]))
        for index, tell in told.items():
            tell(parts[index])
        return parts
