"""A model whose weights are in memory, or on a device, only while the part of the model that reads them runs.

The module tree is cut into pieces by size: a module that is small enough is a piece; of one that is not, its children
are cut in turn, and its own weights are another. A piece is brought when one of its modules is called, and released
when that call ends, also where blocks are run again within a backward pass (``torch.utils.checkpoint``).

On the CPU nothing is moved: weights are maps of their files (`pruning.models.mapped`), and released pages go back to
the system, but for those that were written to. Where the model runs on another device, or in a wider type than it is
stored in, weights are copied, put into the modules in the place of their own, and their own put back. What fits under
the limit stays from the first call on; since models are gone through in the same order again and again, that reads less
than throwing out what was used longest ago.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.files import size
from pruning.models.loading import check_values
from pruning.models.outputs import tensors_in
from pruning.models.pages import FilePages, give_back, read_ahead
from pruning.models.pieces import Piece, called_paths, pieces_of
from pruning.models.running import around_calls, told
from pruning.models.widening import Wider, standing_for, widened

PIECE = 256_000_000
"""Largest bytes of a piece, but for one module whose own weights are more."""

IN_TURN = 2
"""Pieces that are there at a time: the one that runs, and the next."""


@contextmanager
def streamed(
    model: nn.Module,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    limit_bytes: int | None = None,
) -> Iterator[Streaming]:
    """Let the weights of `model` be there only while they are read, for a while.

    Outputs and gradients are those of the whole model, bit for bit. A gradient keeps what it needs of a device: run
    blocks under ``torch.utils.checkpoint`` where all of them would be too much. Weights may be written to between
    calls, in place or by putting others into the modules.

    Args:
        model: Loaded by `map_denoiser`; of another only a `device` that is not the CPU makes sense.
        device: Where it runs; inputs must lie there. `model.device` says so, and pipelines do not move the model.
        dtype: Type in which it runs; narrower weights are widened while they are there, and the outputs are those of
            the model loaded in that type. None: as stored.
        limit_bytes: Of weights at a time, as they are stored; None: two pieces.

    Raises:
        PruningError: If a part that cannot be cut is larger than the limit, or the model streams to a device or in a
            wider type already. Within: for NaN or infinity in a weight that was not read before, naming it.
    """
    streaming = stream(model, device=device, dtype=dtype, limit_bytes=limit_bytes)
    try:
        yield streaming
    finally:
        streaming.end()


def stream(
    model: nn.Module,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    limit_bytes: int | None = None,
) -> Streaming:
    """Do what `streamed` does until `end` of what is returned is called, or for as long as the model is there."""
    device = torch.device(device)
    most = PIECE if limit_bytes is None else min(PIECE, limit_bytes // (IN_TURN + 1))
    streaming = Streaming(model, device, dtype, pieces_of(model, most), limit_bytes)
    try:
        streaming.begin()
    except BaseException:
        streaming.end()
        raise
    return streaming


class Streaming:
    """Brings and releases the pieces of a model; made by `streamed`.

    Attributes:
        pieces: All of them.
        limit: Bytes of weights at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype | None,
        pieces: list[Piece],
        limit: int | None,
    ) -> None:
        largest = max(pieces, key=lambda piece: piece.nbytes, default=Piece("", model))
        if limit is not None and largest.nbytes > limit:
            raise PruningError(
                f"streaming weights: {largest.path!r} has {size(largest.nbytes)} of them, which cannot be there in "
                f"parts, and the limit is {size(limit)}"
            )
        self.pieces = pieces
        self.limit = IN_TURN * largest.nbytes if limit is None else limit
        name = getattr(getattr(model, "config", None), "_name_or_path", None)
        where = f"model source {name!r}" if name else type(model).__name__
        self._files = FilePages()
        self._model, self._device, self._wider = model, device, Wider(model, dtype, device)
        self._holder: _Holder = (
            _Copies(self._files, where, device, self._wider)
            if device.type != "cpu" or self._wider.needed
            else _Pages(self._files, where)
        )
        self._room = self.limit - IN_TURN * largest.nbytes  # for pieces that stay
        self._stay: set[Piece] = set()
        self._calls: Counter[Piece] = Counter()
        self._under_way = False
        self._before: tuple[Piece | None, Piece | None] = None, None
        self._after: dict[tuple[Piece | None, Piece | None], Piece] = {}
        self._in_order = dict(pairwise(pieces))
        self._hooks = ExitStack()

    def begin(self) -> None:
        """Put hooks on the modules of all pieces."""
        dtype = self._wider.dtype if self._wider.needed else None
        device = self._device if self._device.type != "cpu" else None
        self._hooks.enter_context(told(self._model, device=device, dtype=dtype))
        for path in called_paths(self.pieces):  # all may be called by itself, or run again
            self._hooks.enter_context(around_calls(self._model.get_submodule(path), self._called))
        for piece in filter(self._holder.serves, self.pieces):
            self._hook(piece, piece)
            for part in piece.parts:
                self._hook(part, piece)
        settle = self._model.register_forward_pre_hook(lambda *_: self._settle(), prepend=True)
        self._hooks.callback(settle.remove)

    def end(self) -> None:
        """Take the hooks away and leave the model as it was."""
        self._hooks.close()
        self._settle()
        for piece in self.pieces:
            self._holder.release(piece, stays=False)
        self._holder.close()

    @contextmanager
    def _called(self) -> Iterator[None]:
        """What is about a call of the model, or of a part of it by itself."""
        if self._under_way:
            yield
            return
        self._under_way = True
        try:
            with self._wider.called():
                try:
                    yield
                except BaseException:
                    self._settle()
                    raise
        finally:
            self._under_way = False

    def _settle(self) -> None:
        """Release what an interrupt left behind, after which torch calls no hooks."""
        for piece in filter(self._calls.__getitem__, [*self._calls]):
            self._holder.release(piece, stays=True)
        self._calls.clear()

    def _hook(self, piece: Piece, whole: Piece) -> None:
        """Put hooks on the module of `piece`, which is the piece `whole` or a part of it."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if piece is whole or not self._calls[whole]:
                self._enter(piece, whole, (args, kwargs))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._leave(piece, whole)

        for handle in (
            piece.module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
            piece.module.register_forward_hook(leave, always_call=True),
        ):
            self._hooks.callback(handle.remove)

    def _enter(self, piece: Piece, whole: Piece, arguments: Any) -> None:
        self._calls[piece] += 1
        if self._calls[piece] > 1:
            return
        if piece is whole:
            if piece not in self._stay and piece.nbytes <= self._room:
                self._room -= piece.nbytes
                self._stay.add(piece)
            self._look_ahead(piece)
        self._holder.bring(piece, arguments, stays=whole in self._stay)

    def _leave(self, piece: Piece, whole: Piece) -> None:
        if self._calls[piece]:
            self._calls[piece] -= 1
            if not self._calls[piece]:
                self._holder.release(piece, stays=whole in self._stay)

    def _look_ahead(self, piece: Piece) -> None:
        """Let the system read what came next the last time that this piece was called after the same other.

        Before there was a last time, that is what comes next in the order of modules.
        """
        self._after[self._before] = piece
        self._before = self._before[1], piece
        following = self._after.get(self._before, self._in_order.get(piece))
        if following is not None and following not in self._stay:
            owns = map(self._wider.own, following.weights().values())
            read_ahead(filter(self._files.hold, owns))


class _Holder(Protocol):
    """How weights come and go; what `stays` is kept until it is released without."""

    def serves(self, piece: Piece) -> bool:
        """Tell whether there is anything to do for a piece."""
        ...

    def bring(self, piece: Piece, arguments: Any, stays: bool) -> None:
        """See that the weights of a piece are there; its module is called with `arguments`."""
        ...

    def release(self, piece: Piece, stays: bool) -> None:
        """Let the weights of a piece go."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class _Unread:
    """Looks for NaN in weights that lie in files, the first time that they are read."""

    def __init__(self, files: FilePages, where: str) -> None:
        self._files, self._where = files, where
        self._seen: set[str] = set()

    def check(self, name: str, weight: Tensor, read: Tensor) -> None:
        """Raise PruningError if `read`, the values of a weight, is not finite."""
        if name not in self._seen and (self._files.hold(weight) or not self._files.known):
            check_values(read, self._where, name)
        self._seen.add(name)


class _Pages:
    """Weights on the CPU: pages of files, which come when they are read, and are given back."""

    def __init__(self, files: FilePages, where: str) -> None:
        self._files, self._unread = files, _Unread(files, where)
        self._on_leaves: dict[Piece, list[Any]] = {}
        self._behind: Piece | None = None  # in a backward pass

    def serves(self, piece: Piece) -> bool:
        return not self._files.known or any(map(self._files.hold, piece.weights().values()))

    def bring(self, piece: Piece, arguments: Any, stays: bool) -> None:
        for name, weight in piece.weights().items():
            self._unread.check(name, weight, weight)
        if torch.is_grad_enabled() and not stays:
            self._give_back_after_backward(piece, arguments)

    def release(self, piece: Piece, stays: bool) -> None:
        if not stays:
            give_back(filter(self._files.hold, piece.weights().values()))

    def close(self) -> None:
        for piece in [*self._on_leaves]:
            self._forget(piece)

    def _forget(self, piece: Piece) -> None:
        for handle in self._on_leaves.pop(piece, []):
            handle.remove()

    def _give_back_after_backward(self, piece: Piece, arguments: Any) -> None:
        """A backward pass reads weights again; it is done with a piece when it knows the gradients of its inputs."""

        def done(gradient: Tensor) -> None:
            for one in {piece, self._behind} - {None}:
                self.release(one, stays=False)
            self._behind = piece

        self._forget(piece)
        for tensor in tensors_in(arguments):
            if tensor.requires_grad:
                handle = tensor.register_hook(done)
                if tensor.is_leaf:  # others go with their graph
                    self._on_leaves.setdefault(piece, []).append(handle)


class _Copies:
    """Weights on another device, or in a wider type: copies, in the modules in the place of the weights."""

    def __init__(self, files: FilePages, where: str, device: torch.device, wider: Wider) -> None:
        self._files, self._unread = files, _Unread(files, where)
        self._device, self._wider = device, wider
        self._placed: dict[Piece, list[tuple[dict[str, Any], str, Tensor, Tensor]]] = {}
        self._kept: dict[str, tuple[Tensor, int, Tensor]] = {}

    def serves(self, piece: Piece) -> bool:
        return True

    def bring(self, piece: Piece, arguments: Any, stays: bool) -> None:
        placed = self._placed.setdefault(piece, [])
        for store, key, name in piece.slots:
            there = store.get(key)
            if there is not None:
                own = self._wider.own(there)
                store[key] = standing_for(own, self._copy(name, own, stays))
                placed.append((store, key, there, store[key]))

    def _copy(self, name: str, own: Tensor, stays: bool) -> Tensor:
        kept = self._kept.get(name)
        if kept is not None and kept[0] is own and kept[1] == own._version:
            return kept[2]
        with torch.inference_mode(False):  # a later call may want gradients of what is kept
            there = own.detach().to(self._device)
            copy = widened(there, self._wider.dtype)
            copy = there.clone() if copy.data_ptr() == own.data_ptr() else copy
        self._unread.check(name, own, copy)
        if self._files.hold(own):
            give_back([own])
        if stays:
            self._kept[name] = own, own._version, copy
        return copy

    def release(self, piece: Piece, stays: bool) -> None:
        for store, key, there, copy in self._placed.pop(piece, []):
            if store.get(key) is copy:  # else another was put there
                store[key] = there
        if not stays:
            for _, _, name in piece.slots:
                self._kept.pop(name, None)

    def close(self) -> None:
        self._kept.clear()
