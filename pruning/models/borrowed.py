"""Weights that are in memory only while somebody holds them, of a model whose weights lie in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from pruning.models.pages import FilePages, give_back


class Borrowed(Mapping[str, Tensor]):
    """Parameters of a model by path. One that lies in a file is a copy, made when it is asked for.

    Args:
        model: The model; see `pruning.models.mapped`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._files = FilePages()

    def __getitem__(self, path: str) -> Tensor:
        weight = self._parameters[path].detach()
        if not self._files.hold(weight):
            return weight
        copied = weight.clone()
        give_back([weight])
        return copied

    def __contains__(self, path: object) -> bool:
        return path in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)
