"""The bytes of an .onnx file: protobuf's wire format, and the messages of onnx.proto.

A device has neither onnx nor protobuf, and a file may hold gigabytes. So messages are read field
by field from a memory map. The format is specified in "Protocol Buffers: Encoding".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vit_export.artifact.manifest import TensorSpec

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MIN_EXTERNAL_BYTES = 1024  # shapes and scalars stay inside: runtimes fold them

# ModelProto
IR_VERSION, PRODUCER, PRODUCER_VERSION, GRAPH, OPSET, METADATA = 1, 2, 3, 7, 8, 14
# GraphProto
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12
# TensorProto
_DATA_TYPE, _TENSOR_NAME, RAW_DATA, _EXTERNAL, _LOCATION = 2, 8, 9, 13, 14
_STORED_ELSEWHERE = 1

DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"},
    **{16: "bfloat16", 17: "float8e4m3fn", 19: "float8e5m2", 21: "uint4", 22: "int4"},
}


class Field(NamedTuple):
    """One field of a message, in the buffer of its file."""

    buffer: memoryview
    number: int
    start: int  # offset of the field's tag
    end: int  # offset after the field
    value: int  # the number; of a length-delimited field, the offset of its payload
    is_bytes: bool  # whether the field is length-delimited

    @property
    def raw(self) -> bytes:
        """The bytes of the field, its tag included."""
        return bytes(self.buffer[self.start : self.end])

    @property
    def text(self) -> str:
        """The payload as text."""
        return str(self.buffer[self.value : self.end], "utf-8")

    def fields(self) -> Iterator[Field]:
        """Yield the fields of the message in the payload."""
        return fields(self.buffer, self.value, self.end)


def fields(buffer: memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in `buffer[start:end]`; ValueError where it is none."""
    stop = len(buffer) if end is None else end
    at = start
    while at < stop:
        tag, value_at = read_varint(buffer, at, stop)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {at}")
        if wire_type == VARINT:
            value, after = read_varint(buffer, value_at, stop)
        elif wire_type == BYTES:
            size, value = read_varint(buffer, value_at, stop)
            after = value + size
        elif wire_type in (FIXED64, FIXED32):
            after = value_at + (8 if wire_type == FIXED64 else 4)
            value = int.from_bytes(buffer[value_at:after], "little")
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if after > stop:
            raise ValueError(f"a field reaches {after - stop} bytes beyond the end")
        yield Field(buffer, number, at, after, value, wire_type == BYTES)
        at = after


def by_number(parts: Iterable[Field]) -> defaultdict[int, list[Field]]:
    """Group fields by their number."""
    grouped: defaultdict[int, list[Field]] = defaultdict(list)
    for part in parts:
        grouped[part.number].append(part)
    return grouped


def read_varint(buffer: memoryview, at: int, stop: int) -> tuple[int, int]:
    """Return a varint, of at most 10 bytes, and the offset after it."""
    value = shift = 0
    while at < stop and shift < 70:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number does not end at byte {at}")


def varint(value: int) -> bytes:
    """Encode a non-negative integer."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(number: int, size: int) -> bytes:
    """Encode tag and length of a length-delimited field of `size` bytes."""
    return varint(number << 3 | BYTES) + varint(size)


def message(number: int, payload: bytes) -> bytes:
    """Encode a length-delimited field."""
    return header(number, len(payload)) + payload


@dataclass(frozen=True)
class Node:
    """One operator of the graph."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class Initializer:
    """One constant of the graph, and where its bytes are."""

    name: str
    dtype: str
    location: str  # file name relative to the .onnx file; empty when the data is inside
    offset: int  # of the data in that file, in bytes; -1 when it is not stored raw
    nbytes: int  # size of the data; -1 when it is not stored raw, or reaches to the file's end


def graph_fields(buffer: memoryview) -> Iterator[Field]:
    """Yield the fields of the GraphProto."""
    for part in fields(buffer):
        if part.number == GRAPH:
            yield from part.fields()


def parse_node(node: Field) -> Node:
    """Return a NodeProto without attributes: input 1, output 2, name 3, op_type 4, domain 7."""
    parts = by_number(node.fields())
    name, op_type, domain, inputs, outputs = ([f.text for f in parts[n]] for n in (3, 4, 7, 1, 2))
    return Node(
        "".join(op_type), "".join(domain), tuple(inputs), tuple(outputs), name="".join(name)
    )


def parse_initializer(tensor: Field) -> Initializer:
    """Return a TensorProto without its data."""
    parts = by_number(tensor.fields())
    external = parse_string_map(parts[_EXTERNAL])
    location, offset, nbytes = external.get("location", ""), -1, -1
    if location:
        offset, nbytes = int(external.get("offset", "0")), int(external.get("length", "-1"))
        if offset < 0:
            raise ValueError(f"external data at byte {offset}")
    elif parts[RAW_DATA]:
        data = parts[RAW_DATA][-1]
        offset, nbytes = data.value, data.end - data.value
    return Initializer(
        name="".join(f.text for f in parts[_TENSOR_NAME]),
        dtype=_dtype_name(parts[_DATA_TYPE]),
        location=location,
        offset=offset,
        nbytes=nbytes,
    )


def parse_value(value: Field) -> TensorSpec:
    """Return a ValueInfoProto: name 1, type 2 {tensor_type 1 {elem_type 1, shape 2 {dim 1}}}."""
    dtype = _dtype_name(_inside(value, 2, 1, 1))
    shape = tuple(map(_parse_dimension, _inside(value, 2, 1, 2, 1)))
    name = "".join(f.text for f in _inside(value, 1))
    return TensorSpec(name, dtype, shape)


def _dtype_name(data_type: Iterable[Field]) -> str:
    number = max((f.value for f in data_type), default=0)
    return DTYPES.get(number, f"type {number}")


def _inside(outer: Field, *path: int) -> Iterator[Field]:
    """Yield the fields at a path of field numbers, through the messages on the way."""
    for f in outer.fields():
        if f.number == path[0]:
            yield from _inside(f, *path[1:]) if path[1:] else (f,)


def _parse_dimension(dim: Field) -> int | str:
    for f in dim.fields():
        if f.number == 1 and f.value < 1 << 63:  # old exporters write -1 for a dynamic one
            return f.value
        if f.number == 2:
            return f.text
    return "?"


def external_entries(location: str, offset: int, nbytes: int) -> bytes:
    """Return the fields of a TensorProto that say where its data is; no length below 0."""
    pairs = {"location": location, "offset": str(offset)}
    if nbytes >= 0:
        pairs["length"] = str(nbytes)
    return string_map(_EXTERNAL, pairs) + varint(_LOCATION << 3) + varint(_STORED_ELSEWHERE)


def string_map(number: int, entries: Mapping[str, str]) -> bytes:
    """Encode a repeated field of StringStringEntryProto messages: key 1, value 2."""
    pairs = (message(1, k.encode()) + message(2, v.encode()) for k, v in entries.items())
    return b"".join(message(number, pair) for pair in pairs)


def parse_string_map(entries: Iterable[Field]) -> dict[str, str]:
    """Return the texts of a repeated field that `string_map` encodes."""
    texts = ({f.number: f.text for f in entry.fields()} for entry in entries)
    return {text.get(1, ""): text.get(2, "") for text in texts}


def without_data(tensor: Field) -> bytes:
    """Return the fields of a TensorProto, without its data and its location."""
    dropped = (RAW_DATA, _EXTERNAL, _LOCATION)
    return b"".join(f.raw for f in tensor.fields() if f.number not in dropped)
