"""The protobuf wire format, as far as an .onnx file needs it.

A device has neither onnx nor protobuf, and a file may hold gigabytes: so messages are read
field by field out of a memory map, and written as a sequence of byte strings. The format is
specified in "Protocol Buffers: Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are no protobuf message, or end too early."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: Field number.
        start: Offset of the field's tag in the buffer.
        end: Offset behind the field.
        value: The integer of a varint, or of the bits of a fixed field; for a length-delimited
            field the offset where its payload starts.
        is_bytes: Whether the field is length-delimited.
    """

    number: int
    start: int
    end: int
    value: int
    is_bytes: bool


def fields(buffer: memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Walk the fields of the message that lies at `buffer[start:end]`.

    Raises:
        WireError: The bytes are no protobuf message, or a field reaches beyond the end.
    """
    stop = len(buffer) if end is None else end
    at = start
    while at < stop:
        tag, value_at = read_varint(buffer, at, stop)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        if wire_type == VARINT:
            value, after = read_varint(buffer, value_at, stop)
        elif wire_type == BYTES:
            size, value = read_varint(buffer, value_at, stop)
            after = value + size
        elif wire_type in (FIXED64, FIXED32):
            after = value_at + (8 if wire_type == FIXED64 else 4)
            value = int.from_bytes(buffer[value_at:after], "little")
        else:
            raise WireError(f"wire type {wire_type} at byte {at}")
        if after > stop:
            raise WireError(f"a field reaches {after - stop} bytes beyond the end")
        yield Field(number, at, after, value, wire_type == BYTES)
        at = after


def read_varint(buffer: memoryview, at: int, stop: int) -> tuple[int, int]:
    """Return a varint and the offset behind it.

    Raises:
        WireError: It does not end in time.
    """
    value = shift = 0
    while at < stop and shift < 70:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError(f"a number does not end at byte {at}")


def signed(value: int) -> int:
    """Read a varint as int64, as protobuf stores negative numbers."""
    return value - (1 << 64) if value >= 1 << 63 else value


def packed_varints(buffer: memoryview, field: Field) -> list[int]:
    """Integers of a repeated field: one when it is not packed, all of them when it is."""
    if not field.is_bytes:
        return [signed(field.value)]
    values, at = [], field.value
    while at < field.end:
        value, at = read_varint(buffer, at, field.end)
        values.append(signed(value))
    return values


def varint(value: int) -> bytes:
    """Encode a non-negative integer."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(number: int, size: int) -> bytes:
    """What precedes a length-delimited payload of `size` bytes."""
    return varint(number << 3 | BYTES) + varint(size)


def message(number: int, payload: bytes) -> bytes:
    """A whole length-delimited field."""
    return header(number, len(payload)) + payload


def integer(number: int, value: int) -> bytes:
    """A whole varint field."""
    return varint(number << 3 | VARINT) + varint(value)
