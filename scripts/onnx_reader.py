"""Read nodes and float weights of an ONNX file, without the package `onnx`.

An ONNX file is one protobuf message, and to read weights ten of its fields are enough: for one model that is less
than a dependency. Wire format: https://protobuf.dev/programming-guides/encoding; field numbers: onnx.proto of ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import PruningError

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_OP = 1, 2, 4
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9
FLOAT = 1
"""TensorProto.DataType of float32."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_SIZE = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Node:
    """One operation: its kind, and the names of the tensors that it reads and makes."""

    op: str
    inputs: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class Graph:
    """What a file holds.

    Attributes:
        nodes: In the order of computation.
        weights: float32 initialisers that are stored inside the file, by name; others are left out.
    """

    nodes: list[Node]
    weights: dict[str, Tensor]


def read_graph(data: bytes) -> Graph:
    """Return the graph of an ONNX file.

    Args:
        data: Contents of the file.

    Raises:
        PruningError: If this is no ONNX file, or a part of one.
    """
    nodes, weights = [], {}
    for field, graph in _fields(memoryview(data)):
        if field != MODEL_GRAPH:
            continue
        for part, value in _fields(_bytes(graph)):
            if part == GRAPH_NODE:
                nodes.append(_node(_bytes(value)))
            elif part == GRAPH_INITIALIZER:
                weights |= _weight(_bytes(value))
    if not nodes:
        raise PruningError("no ONNX file: it holds no graph with nodes")
    return Graph(nodes, weights)


def _node(data: memoryview) -> Node:
    op, inputs, outputs = "", [], []
    for field, value in _fields(data):
        if field == NODE_OP:
            op = _text(value)
        elif field == NODE_INPUT:
            inputs.append(_text(value))
        elif field == NODE_OUTPUT:
            outputs.append(_text(value))
    return Node(op, inputs, outputs)


def _weight(data: memoryview) -> dict[str, Tensor]:
    """Return a float32 tensor under its name; nothing for other types and for tensors stored elsewhere."""
    name, kind, shape, raw = "", 0, [], None
    for field, value in _fields(data):
        if field == TENSOR_NAME:
            name = _text(value)
        elif field == TENSOR_TYPE:
            kind = value
        elif field == TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif field == TENSOR_RAW:
            raw = _bytes(value)
    if kind != FLOAT or raw is None:
        return {}
    if len(raw) != 4 * math.prod(shape):
        raise PruningError(f"no sound ONNX file: {name} has shape {shape} and {len(raw)} bytes")
    values = torch.frombuffer(bytearray(raw), dtype=torch.float32) if raw else torch.empty(0)
    return {name: values.reshape(shape)}


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Go through a message: number and value of each field, numbers as integers, everything else as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        value, position = _varint(data, position) if wire in (VARINT, BYTES) else (0, position)
        if wire != VARINT:
            size = value if wire == BYTES else FIXED_SIZE.get(wire, len(data) + 1)
            value, position = data[position : position + size], position + size
        if position > len(data):
            raise PruningError("no sound ONNX file: a field does not fit into it")
        yield number, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        value, position = value | (byte & 127) << shift, position + 1
        if byte < 128:
            return value, position
    raise PruningError("no sound ONNX file: a number does not end")


def _packed(data: memoryview) -> list[int]:
    """Return numbers that follow one another in one field."""
    values, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise PruningError("no sound ONNX file: a number where a message or text belongs")
    return value


def _text(value: int | memoryview) -> str:
    return str(_bytes(value), "utf-8", "replace")
