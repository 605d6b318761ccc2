"""Cost: parameters, multiply-accumulates, file size and peak memory of one denoiser call.

MACs are torch's `FlopCounterMode` divided by two: it counts a multiplication and an addition of every matrix product,
convolution and scaled dot-product attention (dense, masks not deducted), and nothing else (no norms, no activations).
"""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from eval.observation import Observation, Seen
from eval.types import Context

NEEDS = ("predict", "model", "call")
READS = ("cost",)
BATCH = 1
MACS_METHOD = "FlopCounterMode / 2 on one call with batch 1; scaled dot-product attention is counted"
ALLOCATOR = "weights + CUDA allocator peak above its level before the call"
LIVE_TENSORS = (
    "weights + peak of live tensor bytes made by the call (scratch memory inside kernels is not seen)"
)


def count_params(model: nn.Module) -> int:
    """Return the number of parameters, a shared one once."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def count_macs(run: Callable[[], Any]) -> int:
    """Return the multiply-accumulates of what `run` computes; see the top of this file for what is counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters and buffers as they are held in memory, a shared one once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of the tensors that operators make and drop inside the context.

    Every new storage counts from the operator that returned it until it is freed. Storages that came in from outside
    (weights, inputs) do not count; nor does scratch memory that a kernel takes and gives back by itself. `live` are the
    bytes alive now, `peak` the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count the storages that it made."""
        self._known.update(_storages((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def _storages(tree: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def peak_memory(model: nn.Module, run: Callable[[], Any]) -> tuple[int, str]:
    """Return the peak memory in bytes of `run`, one call of the model, weights included, and how it was measured.

    Other models may be resident in the same process, so only what the call adds is measured, and the model's own
    weights are added to it.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        run()  # libraries take their workspaces at the first call
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return weight_bytes(model) + torch.cuda.max_memory_allocated(device) - before, ALLOCATOR
    with LiveBytes() as mode:
        run()
    return weight_bytes(model) + mode.peak, LIVE_TENSORS


def saved_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of the one safetensors file that ``save_pretrained`` makes of a model, without writing it.

    That is 8 bytes, a JSON header padded to a multiple of 8, and the tensors: floating point ones as `dtype`, the
    others as they are. The model may be on any device, the meta device included.
    """
    tensors = {
        name: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device="meta")
        for name, t in model.state_dict().items()
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        start, end = end, end + tensor.nbytes
        entry = {"dtype": _code(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [start, end]}
        header[name] = entry
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + math.ceil(length / 8) * 8 + end


def _code(dtype: torch.dtype) -> str:
    """Return the name of a type in a safetensors file: F32, BF16, I64, U8, BOOL."""
    if dtype in (torch.bool, torch.bfloat16):
        return "BOOL" if dtype == torch.bool else "BF16"
    kind = "F" if dtype.is_floating_point else "I" if dtype.is_signed else "U"
    return f"{kind}{8 * dtype.itemsize}"


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Return parameters, MACs, file bytes (None if unknown) and peak memory of one call of a subject."""
    subject = context.subjects[name]
    predict, model, example = subject.predict, subject.model, context.call
    assert predict is not None
    assert model is not None
    assert example is not None
    call = example(BATCH)
    peak, method = peak_memory(model, lambda: predict(call))
    facts = {
        "params": count_params(model),
        "macs": count_macs(lambda: predict(call)),
        "macs_method": MACS_METHOD,
        "file_bytes": subject.file_bytes,
        "weight_bytes": weight_bytes(model),
        "peak_memory_bytes": peak,
        "peak_memory_method": method,
    }
    return Observation(facts=facts)


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject what a call of it costs, as observed."""
    return {name: dict(seen[name]["cost"].facts) for name in context.subjects}
