"""The bytes of cut tensors: copied, or moved together within the memory that they already have.

A large copy on CPU costs mostly the kernel's zeroing of new pages, so a parameter that nobody else can see keeps
its memory: what stays moves to the front, piece by piece, and the rest of the pages go back to the system. What may
be seen from elsewhere (an optimizer, a kept state dict, a NumPy array, a memory-mapped file) is copied and left alone.
"""

from __future__ import annotations

import math
import mmap
import sys
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pruning.models.pages import madvise

WORTHWHILE = 1 << 20  # bytes; below, a copy is cheap
PIECE = 1 << 21  # bytes of source moved at a time; fits into the processor's cache


class Cutter:
    """Cuts parameters out of their modules; those that a thread cuts share one scratch buffer."""

    def __init__(self) -> None:
        self._own = threading.local()
        probe = nn.Linear(1, 1)
        self._alone = _references(probe, "weight")

    @torch.no_grad()
    def cut(self, module: nn.Module, name: str, masks: dict[int, Tensor]) -> None:
        """Keep of parameter `name` the entries along each dimension where the mask is set, as a new parameter.

        The new one is contiguous and its storage is exactly as large as it; device, dtype and ``requires_grad``
        stay, the gradient goes.
        """
        reuse = len(masks) == 1 and self._may_reuse(module, name)
        old = module.get_parameter(name)
        value = old.detach()
        for dim, mask in masks.items():
            value = self._compact(value, dim, mask) if reuse else take(value, dim, mask)
        setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))

    def _may_reuse(self, module: nn.Module, name: str) -> bool:
        value = module.get_parameter(name).detach()
        storage = value.untyped_storage()
        whole = value.is_contiguous() and storage.nbytes() == value.nbytes >= WORTHWHILE
        ours = value.device.type == "cpu" and storage.resizable() and not storage.is_shared()
        del value, storage
        return _release() is not None and whole and ours and _references(module, name) == self._alone

    def _compact(self, old: Tensor, dim: int, mask: Tensor) -> Tensor:
        """Move what stays to the front, a piece at a time; no piece reaches past the start of the next one's source."""
        blocks, kept = _in_blocks(old, dim, mask)
        shape = [*old.shape[:dim], int(mask.sum()), *old.shape[dim + 1 :]]
        # Written in place: autograd will refuse graphs that saved the old values.
        flat, end = old.flatten(), 0
        rows = max(1, PIECE * len(blocks) // old.nbytes)
        for piece in (kept if dim == 0 else torch.arange(len(blocks))).split(rows):
            source = (blocks, piece) if dim == 0 else (blocks[int(piece[0]) : int(piece[-1]) + 1], kept)
            gathered = self._gather(source[0], dim, source[1])
            flat[end : end + gathered.numel()] = gathered
            end += gathered.numel()
        nbytes = end * old.element_size()
        release = _release()
        assert release is not None
        release(old, nbytes)
        # A storage of its own size, so that torch.save and nbytes() see the cut tensor; it keeps `old` alive.
        front = torch.from_numpy(old.view(torch.uint8).flatten().numpy()[:nbytes])
        return front.view(old.dtype).view(shape)

    def _gather(self, blocks: Tensor, dim: int, kept: Tensor) -> Tensor:
        shape = [*blocks.shape[:dim], len(kept), *blocks.shape[dim + 1 :]]
        nbytes = math.prod(shape) * blocks.element_size()
        scratch = getattr(self._own, "scratch", None)
        if scratch is None or scratch.nbytes < nbytes:
            self._own.scratch = scratch = torch.empty(nbytes, dtype=torch.uint8)
        out = scratch[:nbytes].view(blocks.dtype).view(shape)
        return _select(blocks, dim, kept, out).flatten()


def take(value: Tensor, dim: int, mask: Tensor) -> Tensor:
    """Return the entries of `value` along `dim` where `mask` is set, as a new contiguous tensor."""
    blocks, kept = _in_blocks(value, dim, mask)
    shape = [*blocks.shape[:dim], len(kept), *blocks.shape[dim + 1 :]]
    return _select(blocks, dim, kept, blocks.new_empty(shape)).flatten(dim, dim + 1)


def _select(value: Tensor, dim: int, index: Tensor, out: Tensor) -> Tensor:
    """Do what `torch.index_select` does; on CPU that takes short elements one by one at a quarter of NumPy's speed."""
    if value.device.type != "cpu" or value.element_size() > 2:
        return torch.index_select(value, dim, index, out=out)
    bits = torch.int8 if value.element_size() == 1 else torch.int16
    source, target = value.detach().view(bits).numpy(), out.view(bits).numpy()
    # In another mode NumPy makes a copy to check first.
    np.take(source, index.numpy(), axis=dim, out=target, mode="clip")
    return out


def _in_blocks(value: Tensor, dim: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split `dim` into the largest blocks that stay or go as one, and say which stay.

    Moved as one, the columns of a convolution copy 4x faster than one by one.
    """
    borders = (mask[1:] != mask[:-1]).nonzero().flatten() + 1
    block = math.gcd(len(mask), *borders.tolist())
    kept = mask[::block].nonzero().flatten().to(value.device)
    return value.unflatten(dim, (len(mask) // block, block)), kept


def _references(module: nn.Module, name: str) -> tuple[int, int]:
    """Return how many Python names the parameter has and how many tensors its storage, as seen from here."""
    parameter = module._parameters[name]
    assert parameter is not None
    storage = parameter.untyped_storage()
    return sys.getrefcount(parameter), torch._C._storage_Use_Count(storage._cdata)


def _release() -> Callable[[Tensor, int], None] | None:
    """Return what gives the pages of a tensor after its first bytes back to the system; None where it cannot."""
    advise = madvise()
    if advise is None or not hasattr(torch._C, "_storage_Use_Count"):
        return None

    def release(tensor: Tensor, used: int) -> None:
        page = mmap.PAGESIZE
        start = -(-(tensor.data_ptr() + used) // page) * page
        length = (tensor.data_ptr() + tensor.nbytes - start) // page * page
        if length > 0:
            advise(start, length, mmap.MADV_DONTNEED)  # only advice: if it fails, the memory stays

    return release
