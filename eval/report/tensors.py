"""The tensor files of a run directory: samples and sink statistics, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from eval.report.node import Node


@dataclass(frozen=True)
class Site:
    """Sink statistics of one attention module, means over samples.

    Attributes:
        module: Module path.
        grid: Token grid ``(rows, columns)`` if the keys are image tokens, else None.
        threshold: Relative mass from which a key counts as a sink (rho of SCORES.md section 2).
        sink_mass: Share of a head's attention on sink keys, ``(T, H)`` in [0, 1]; T timestep buckets, H heads.
        key_mass: Attention mass by key, mean over heads, ``(T, M)``; a row sums to one.
        indicator: Soft sink indicator ``(T, M)`` in [0, 1], or None.
    """

    module: str
    grid: tuple[int, int] | None
    threshold: float
    sink_mass: NDArray[np.float64]
    key_mass: NDArray[np.float64]
    indicator: NDArray[np.float64] | None

    @property
    def relative_mass(self) -> NDArray[np.float64]:
        """Key mass in units of the uniform share, ``r = M * m``, ``(T, M)``; 1 is uniform."""
        return self.key_mass * self.key_mass.shape[1]


def _tensors(node: Node) -> dict[str, NDArray[Any]]:
    """Open the safetensors file that `node` names, which must lie in the folder of data.json."""
    name = node.text()
    file = node.file.parent / name
    if Path(name).name != name:
        raise ValueError(f"{node.place}: must be the name of a file beside data.json, found {name!r}")
    if not file.is_file():
        raise ValueError(f"{node.place}: names {name!r}, but there is no file {file}")
    try:
        with safe_open(file, framework="numpy") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file of numpy types ({error})") from error


def read_samples(node: Node, subjects: list[str]) -> tuple[dict[str, NDArray[np.uint8]], list[int] | None]:
    """Read the samples of the subjects, uint8 ``(n, 1 or 3, H, W)`` each, and their labels if there are any.

    Raises:
        ValueError: If the file is missing or broken, or a tensor has the wrong type, shape or length.
    """
    if node.value is None:
        return {}, None
    tensors = _tensors(node)
    place = f"{node.file.parent / node.text()}"
    found = {name: tensors[name] for name in subjects if name in tensors}
    for name, images in found.items():
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"{place}: {name!r} must be a uint8 tensor (n, 1 or 3, H, W), found {images.dtype} {images.shape}"
            )
    counts = {name: len(images) for name, images in found.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{place}: every subject must have the same number of images, found {counts}")
    if 0 in counts.values():
        return {}, None
    labels = tensors.get("labels")
    if labels is None or not found:
        return found, None
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != next(iter(counts.values())):
        raise ValueError(
            f"{place}: 'labels' must be one integer an image, found {labels.dtype} {labels.shape}"
        )
    return found, [int(label) for label in labels]


def read_sites(file: Node, listing: Node) -> list[Site]:
    """Read the sink statistics of every site that `listing` names.

    Raises:
        ValueError: If the file is missing or broken, or a tensor is missing or has the wrong type, shape or range.
    """
    if file.value is None:
        return []
    tensors = _tensors(file)
    place = f"{file.file.parent / file.text()}"
    return [_site(child, tensors, place) for child in listing.items()]


def _site(node: Node, tensors: Mapping[str, NDArray[Any]], place: str) -> Site:
    module = node.get("module").text()
    heads, keys = node.get("heads").integer(low=1), node.get("keys").integer(low=1)
    sides = [child.integer(low=1) for child in node.get("grid").items()]
    if sides and (len(sides) != 2 or sides[0] * sides[1] != keys):
        raise ValueError(f"{node.place}.grid: must be [rows, columns] of {keys} keys, found {sides}")
    threshold = node.get("threshold").number(low=0)

    def tensor(name: str, columns: int) -> NDArray[np.float64]:
        path = f"{module}/{name}"
        if path not in tensors:
            raise ValueError(f"{place}: has no tensor {path!r}, which {node.place} asks for")
        values = tensors[path]
        if values.ndim != 2 or values.shape[1] != columns or values.dtype.kind != "f":
            raise ValueError(
                f"{place}: {path!r} must be a float tensor (timesteps, {columns}), "
                f"found {values.dtype} {values.shape}"
            )
        values = values.astype(np.float64)
        if np.nanmin(values, initial=0.0) < -1e-4 or np.nanmax(values, initial=0.0) > 1.001:
            raise ValueError(
                f"{place}: {path!r} holds means over samples, which lie in [0, 1]; found values outside"
            )
        return values

    sink_mass, key_mass = tensor("sink_mass", heads), tensor("key_mass", keys)
    indicator = tensor("sink_indicator", keys) if f"{module}/sink_indicator" in tensors else None
    rows = {len(values) for values in (sink_mass, key_mass, indicator) if values is not None}
    if len(rows) > 1 or 0 in rows:
        raise ValueError(
            f"{place}: the tensors of {module!r} must have one row a timestep bucket, found {rows} rows"
        )
    return Site(
        module=module,
        grid=(sides[0], sides[1]) if sides else None,
        threshold=threshold if threshold is not None else float(np.sqrt(keys)),
        sink_mass=sink_mass,
        key_mass=key_mass,
        indicator=indicator,
    )
