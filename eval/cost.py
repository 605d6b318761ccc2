"""Cost: parameters, multiply-accumulates, file size and peak memory of one denoiser call.

MACs are torch's `FlopCounterMode` divided by two: it counts a multiplication and an addition of every matrix product,
convolution and scaled dot-product attention (dense, masks not deducted), and nothing else (no norms, no activations).
"""

from __future__ import annotations

import json
import struct
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from eval.types import Context, Subject

NEEDS = ("predict", "model", "call")
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
    (weights, inputs) do not count; nor does scratch memory that a kernel takes and gives back by itself.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count the storages that it made."""
        for tensor in _tensors((args, kwargs)):
            self._follow(tensor, new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._follow(tensor, new=True)
        return result

    def _follow(self, tensor: Tensor, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        held = self._known.get(key)
        if held is not None and held() is storage:
            return
        size = storage.nbytes() if new else 0
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed(_: Any, key: int = key, size: int = size) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def peak_memory(model: nn.Module, run: Callable[[], Any]) -> tuple[int, str]:
    """Return the peak memory of `run` in bytes, weights included, and how it was measured.

    Other models may be resident in the same process, so only what the call adds is measured, and the model's own
    weights are added to it.

    Args:
        model: The model that `run` calls.
        run: One call.
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


def file_bytes(folder: Path) -> tuple[int, list[str]]:
    """Return the bytes of all safetensors files under `folder` and the sorted dtypes of their tensors.

    Raises:
        ValueError: If there is no such file or one is not a safetensors file.
    """
    files = sorted(Path(folder).rglob("*.safetensors"))
    if not files:
        raise ValueError(
            f"metric 'cost': no *.safetensors file under {folder}; give the folder of a saved model"
        )
    dtypes: set[str] = set()
    for file in files:
        dtypes |= {entry["dtype"] for name, entry in _header(file).items() if name != "__metadata__"}
    return sum(file.stat().st_size for file in files), sorted(dtypes)


def _header(file: Path) -> Mapping[str, Any]:
    """Return the JSON header of a safetensors file, whose length is the file's first eight bytes."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= file.stat().st_size - 8:
            raise ValueError(f"metric 'cost': {file} is not a whole safetensors file; write it again")
        return json.loads(stream.read(length))


def measure(context: Context) -> dict[str, dict[str, Any]]:
    """Return for every subject parameters, MACs, file bytes (None without a folder) and peak memory of one call."""
    context.check("cost", NEEDS)
    assert context.call is not None
    call = context.call(BATCH)
    return {name: _measure(subject, call) for name, subject in context.subjects.items()}


def _measure(subject: Subject, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cost of one subject."""
    predict, model = subject.predict, subject.model
    assert predict is not None
    assert model is not None
    peak, method = peak_memory(model, lambda: predict(call))
    size, dtypes = (None, None) if subject.folder is None else file_bytes(subject.folder)
    return {
        "params": count_params(model),
        "macs": count_macs(lambda: predict(call)),
        "macs_method": MACS_METHOD,
        "file_bytes": size,
        "file_dtypes": dtypes,
        "weight_bytes": weight_bytes(model),
        "peak_memory_bytes": peak,
        "peak_memory_method": method,
    }
