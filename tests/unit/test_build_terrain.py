"""The script that builds the terrain model: its reader of ONNX, its names, its errors, and the whole folder."""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file

from pruning.errors import PruningError
from tests.shared import SHARED

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import build_terrain
from onnx_reader import Node, read_graph


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(op: str, inputs: Sequence[str], output: str) -> bytes:
    return field(1, b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, op))


def weight(name: str, values: Sequence[float], shape: Sequence[int], *, packed: bool = True) -> bytes:
    dims = field(1, b"".join(map(varint, shape))) if packed else b"".join(field(1, n) for n in shape)
    return field(5, dims + field(2, 1) + field(8, name) + field(9, struct.pack(f"<{len(values)}f", *values)))


def onnx(*parts: bytes) -> bytes:
    return field(1, 10) + field(7, b"".join(parts)) + varint(99 << 3 | 5) + bytes(4)


@pytest.mark.parametrize("packed", [True, False])
def test_nodes_and_weights_are_read(packed: bool) -> None:
    values = [float(i) for i in range(300)]
    integers = field(5, field(1, 1) + field(2, 7) + field(8, "shape") + field(9, bytes(8)))
    graph = read_graph(
        onnx(weight("w", values, [150, 2], packed=packed), integers, node("Add", ["x", "w"], "y"))
    )
    assert graph.nodes == [Node("Add", ["x", "w"], ["y"])]
    assert list(graph.weights) == ["w"]
    assert graph.weights["w"].equal(torch.arange(300.0).reshape(150, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no graph with nodes"),
        (b"PK\x03\x04 not an ONNX file", "no sound ONNX file"),
        (onnx(node("Add", ["x"], "y"))[:-8], "a field does not fit"),
        (b"\xff" * 12, "a number does not end"),
        (onnx(weight("w", [1.0, 2.0], [3])), r"w has shape \[3\] and 8 bytes"),
        (field(7, 1), "a number where a message"),
    ],
)
def test_what_is_no_onnx_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        read_graph(data)


def test_the_norm_before_a_convolution_is_found_by_way_of_modulation_and_activation() -> None:
    graph = read_graph(
        onnx(
            weight("scale", [2.0, 3.0], [2, 1, 1]),
            weight("shift", [4.0, 5.0], [2, 1, 1]),
            weight("one", [1.0], []),
            weight("network.out.2.weight", [1.0, 1.0], [1, 2, 1, 1]),
            node("InstanceNormalization", ["x", "ones", "zeros"], "normed"),
            node("Mul", ["normed", "scale"], "scaled"),
            node("Add", ["scaled", "shift"], "norm"),
            node("Add", ["time", "one"], "factor"),
            node("Mul", ["norm", "factor"], "modulated"),
            node("Add", ["modulated", "time"], "moved"),
            node("Sigmoid", ["moved"], "gate"),
            node("Mul", ["moved", "gate"], "silu"),
            node("Conv", ["silu", "network.out.2.weight", "bias"], "y"),
        )
    )
    norm = build_terrain.Source(graph).norm_before("out.2")
    assert norm["weight"].tolist() == [2, 3]
    assert norm["bias"].tolist() == [4, 5]


def test_every_resnet_and_attention_has_a_source_of_its_own() -> None:
    model = build_terrain.empty_unet()
    for kind, found in zip((ResnetBlock2D, Attention), build_terrain.blocks(model), strict=True):
        assert set(found) == {name for name, module in model.named_modules() if isinstance(module, kind)}
        assert len(set(found.values())) == len(found)


def stop(monkeypatch: pytest.MonkeyPatch, out: Path) -> str:
    """Return the message with which the command ends."""
    monkeypatch.setattr(sys, "argv", ["build_terrain.py", str(out)])
    with pytest.raises(SystemExit) as stopped:
        build_terrain.main()
    return str(stopped.value)


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = stop(monkeypatch, tmp_path / "out")
    assert message.startswith("pip could not download adaptive-terrain-diffusion 0.4.2: without a network")
    assert "give the wheel as --package" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "exists already" in stop(monkeypatch, tmp_path)


def package(folder: Path, weights: bytes | None) -> Path:
    wheel = folder / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(build_terrain.LICENSE, "MIT")
        if weights is not None:
            archive.writestr(build_terrain.WEIGHTS, weights)
    return wheel


@pytest.mark.parametrize(
    ("weights", "message"), [(None, "there is no .*onnx"), (b"others", "not the weights of .* SHA-256 is")]
)
def test_other_packages_are_refused(tmp_path: Path, weights: bytes | None, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        build_terrain.build(tmp_path / "out", package(tmp_path, weights))
    assert not (tmp_path / "out").exists()


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package.whl").write_text("no zip file")
    with pytest.raises(PruningError, match="no wheel"):
        build_terrain.read_package(tmp_path / "package.whl")


@pytest.mark.network
def test_the_folder_equals_the_shared_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = SHARED / "models" / "terrain_cm"
    if not known.is_dir():
        pytest.skip(f"there is no {known} to compare with")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "5")
    try:
        wheel = build_terrain.fetch(tmp_path)
    except PruningError as error:
        pytest.skip(f"the package is not at hand: {error}")
    made = tmp_path / "made"
    build_terrain.build(made, wheel)
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    found, expected = load_file(made / weights), load_file(known / weights)
    table = "class_embedding.weight"  # computed here; everything else is copied
    torch.testing.assert_close(found.pop(table), expected.pop(table), rtol=1e-5, atol=1e-3)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in found)
    files = {file.relative_to(known) for file in known.rglob("*") if file.is_file()}
    assert {file.relative_to(made) for file in made.rglob("*") if file.is_file()} == files
    assert (made / "LICENSE").read_text() == (known / "LICENSE").read_text()
