"""ONNX models in files, written tensor by tensor: a copy of all the weights never exists in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir
import torch
from onnx import ModelProto, TensorProto

LARGEST_FILE = 2**31 - 1
"""What a protobuf message may hold, in bytes."""

_LARGE = 1024
"""Constants of more bytes than this are written apart from the graph."""
_PAGE = 4096
"""What external tensors are aligned to, so that a reader can map them into memory."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Field numbers: of the graph in a model, an initializer in a graph, the bytes in a tensor."""


def skeleton(model: onnx_ir.Model) -> tuple[ModelProto, dict[str, torch.Tensor]]:
    """The model with references in the places of its large constants, and these by name."""
    tensors: dict[str, torch.Tensor] = {}
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    try:
        for name, value in model.graph.initializers.items():
            tensor = held[name]
            raw = getattr(tensor, "raw", None)
            if tensor is not None and isinstance(raw, torch.Tensor) and tensor.nbytes > _LARGE:
                tensors[name] = raw
                value.const_value = onnx_ir.ExternalTensor(
                    "weights", 0, tensor.nbytes, tensor.dtype, shape=onnx_ir.Shape(list(raw.shape)), name=name
                )
        return onnx_ir.to_proto(model), tensors
    finally:
        for name, value in model.graph.initializers.items():
            value.const_value = held[name]


def write(model: onnx_ir.Model, path: Path, external_data: bool = False) -> None:
    """Writes the model to a file, with its weights inside, or in `<name>.data` beside it.

    Args:
        model: the model.
        path: the file.
        external_data: whether the weights lie in the other file; they do in any case if one cannot hold them.

    Raises:
        OSError: if it cannot be written.
    """
    proto, tensors = skeleton(model)
    weights = sum(tensor.nbytes for tensor in tensors.values())
    if external_data or proto.ByteSize() + weights > LARGEST_FILE:
        _write_beside(proto, tensors, path)
    else:
        with path.open("wb") as file:
            _write_whole(proto, tensors, file)


def _write_beside(proto: ModelProto, tensors: dict[str, torch.Tensor], path: Path) -> None:
    data = path.with_name(path.name + ".data")
    with data.open("wb") as file:
        for entry in proto.graph.initializer:
            if entry.name not in tensors:
                continue
            file.write(bytes(-file.tell() % _PAGE))
            where = {"location": data.name, "offset": str(file.tell()), "length": str(tensors[entry.name].nbytes)}
            del entry.external_data[:]
            for key, value in where.items():
                entry.external_data.add(key=key, value=value)
            file.write(_bytes(tensors[entry.name]))
    path.write_bytes(proto.SerializeToString())


def _write_whole(proto: ModelProto, tensors: dict[str, torch.Tensor], file: BinaryIO) -> None:
    """The message as protobuf lays it out: fields in any order, each with a tag and, here, its length."""
    large = [entry for entry in proto.graph.initializer if entry.name in tensors]
    heads = []
    for entry in large:
        head = TensorProto(name=entry.name, data_type=entry.data_type, dims=entry.dims).SerializeToString()
        size = tensors[entry.name].nbytes
        head += _field(_RAW_DATA, size)
        heads.append((_field(_INITIALIZER, len(head) + size) + head, tensors[entry.name]))
    small = [entry for entry in proto.graph.initializer if entry.name not in tensors]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    file.write(proto.SerializeToString())
    file.write(_field(_GRAPH, len(graph) + sum(len(head) + tensor.nbytes for head, tensor in heads)))
    file.write(graph)
    for head, tensor in heads:
        file.write(head)
        file.write(_bytes(tensor))


def _field(number: int, length: int) -> bytes:
    """The beginning of a field of that number and length."""
    return bytes(_varint(number << 3 | 2)) + bytes(_varint(length))


def _varint(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
