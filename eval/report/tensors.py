"""The tensor files of a run directory: samples, sink statistics and the outputs of single heads, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from eval.report.node import Node

T = TypeVar("T")

SINK_INDICATOR = 0.5  # s >= 1/2 makes a key a sink (SCORES.md section 2)


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

    @property
    def sinks(self) -> NDArray[np.bool_]:
        """Which keys are sinks at which timestep, ``(T, M)``."""
        if self.indicator is not None:
            return np.nan_to_num(self.indicator) >= SINK_INDICATOR
        return np.nan_to_num(self.relative_mass) >= self.threshold


@dataclass(frozen=True)
class HeadOutput:
    """What a head puts into the output of its attention module on one image: norms by token.

    Attributes:
        module: Module path.
        head: Its number.
        kept: It stays in the model.
        fluctuation_ratio: R_h of SCORES.md section 4, over all of calibration.
        grid: Token grid ``(rows, columns)``.
        before: ``||W_h x_hi||``, ``(T, N)``; T timestep buckets, N tokens.
        folded: ``||W_h mu_h||``: what a bias can say in its place.
        after: ``||W_h (x_hi - mu_h)||``, ``(T, N)``.
    """

    module: str
    head: int
    kept: bool
    fluctuation_ratio: float
    grid: tuple[int, int]
    before: NDArray[np.float64]
    folded: float
    after: NDArray[np.float64]


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
    return _listed(file, listing, _site)


def _listed(file: Node, listing: Node, read: Callable[[Node, Mapping[str, NDArray[Any]], str], T]) -> list[T]:
    """Read every entry of `listing` from the tensors of `file`; none if no file is named."""
    if file.value is None:
        return []
    tensors = _tensors(file)
    return [read(child, tensors, f"{file.file.parent / file.text()}") for child in listing.items()]


def _site(node: Node, tensors: Mapping[str, NDArray[Any]], place: str) -> Site:
    module = node.get("module").text()
    heads, keys = node.get("heads").integer(low=1), node.get("keys").integer(low=1)
    threshold = node.get("threshold").number(low=0)

    def tensor(name: str, columns: int) -> NDArray[np.float64]:
        path = f"{module}/{name}"
        values = _matrix(node, tensors, place, path, columns)
        if np.nanmin(values, initial=0.0) < -1e-4 or np.nanmax(values, initial=0.0) > 1.001:
            raise ValueError(
                f"{place}: {path!r} holds means over samples, which lie in [0, 1]; found values outside"
            )
        return values

    sink_mass, key_mass = tensor("sink_mass", heads), tensor("key_mass", keys)
    indicator = tensor("sink_indicator", keys) if f"{module}/sink_indicator" in tensors else None
    _same_rows([sink_mass, key_mass, *([] if indicator is None else [indicator])], place, module)
    return Site(
        module=module,
        grid=_grid(node, keys, "keys"),
        threshold=threshold if threshold is not None else float(np.sqrt(keys)),
        sink_mass=sink_mass,
        key_mass=key_mass,
        indicator=indicator,
    )


def read_outputs(file: Node, listing: Node) -> list[HeadOutput]:
    """Read what every head that `listing` names puts into its module's output.

    Raises:
        ValueError: If the file is missing or broken, or a tensor is missing or has the wrong type, shape or range.
    """
    return _listed(file, listing, _output)


def _output(node: Node, tensors: Mapping[str, NDArray[Any]], place: str) -> HeadOutput:
    module, head = node.get("module").text(), node.get("head").integer(low=0)
    tokens, name = node.get("tokens").integer(low=1), f"{module}/{head}"
    before, after = (
        _matrix(node, tensors, place, f"{name}/{which}", tokens) for which in ("before", "after")
    )
    _same_rows([before, after], place, name)
    folded = tensors.get(f"{name}/folded", np.empty(0))
    if folded.shape != (1,) or folded.dtype.kind != "f":
        raise ValueError(f"{place}: '{name}/folded' must be one float, found {folded.dtype} {folded.shape}")
    values = np.concatenate([before.ravel(), after.ravel(), folded])
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"{place}: {name!r} holds norms, which are finite and not negative; found others")
    grid = _grid(node, tokens, "tokens")
    if grid is None:
        raise ValueError(f"{node.place}.grid: must be [rows, columns] of {tokens} tokens, found nothing")
    ratio = node.get("fluctuation_ratio").required_number(low=0)
    return HeadOutput(module, head, node.get("kept").flag(True), ratio, grid, before, float(folded[0]), after)


def _grid(node: Node, count: int, what: str) -> tuple[int, int] | None:
    """Return the grid that a node names, or None if it names none."""
    sides = [child.integer(low=1) for child in node.get("grid").items()]
    if sides and (len(sides) != 2 or sides[0] * sides[1] != count):
        raise ValueError(f"{node.place}.grid: must be [rows, columns] of {count} {what}, found {sides}")
    return (sides[0], sides[1]) if sides else None


def _matrix(
    node: Node, tensors: Mapping[str, NDArray[Any]], place: str, path: str, columns: int
) -> NDArray[np.float64]:
    """Return the tensor ``(T, columns)`` at `path`, which `node` asks for."""
    if path not in tensors:
        raise ValueError(f"{place}: has no tensor {path!r}, which {node.place} asks for")
    values = tensors[path]
    if values.ndim != 2 or values.shape[1] != columns or values.dtype.kind != "f":
        raise ValueError(
            f"{place}: {path!r} must be a float tensor (timesteps, {columns}), "
            f"found {values.dtype} {values.shape}"
        )
    return values.astype(np.float64)


def _same_rows(tensors: list[NDArray[np.float64]], place: str, name: str) -> None:
    rows = {len(values) for values in tensors}
    if len(rows) > 1 or 0 in rows:
        raise ValueError(
            f"{place}: the tensors of {name!r} must have one row a timestep bucket, found {rows} rows"
        )
