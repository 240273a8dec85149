"""The wire format is read and written as protobuf itself does it."""

from __future__ import annotations

import onnx
import pytest
from google.protobuf.internal import decoder, encoder
from hypothesis import given
from hypothesis import strategies as st

from vit_export.artifact.onnx_wire import (
    BYTES,
    Field,
    fields,
    header,
    message,
    read_varint,
    varint,
)


def integer(number: int, value: int) -> bytes:
    """A field that is a varint."""
    return varint(number << 3) + varint(value)


uint64 = st.integers(0, 2**64 - 1)


@given(uint64)
def test_a_varint_comes_back(value):
    data = varint(value)
    assert read_varint(memoryview(data + b"\xff"), 0, len(data)) == (value, len(data))


@given(uint64)
def test_a_varint_is_that_of_protobuf(value):
    pieces: list[bytes] = []
    encoder._EncodeVarint(pieces.append, value)
    assert b"".join(pieces) == varint(value)
    assert decoder._DecodeVarint(varint(value), 0)[0] == value


@given(st.integers(0, 2**64 - 1), st.integers(0, 9))
def test_a_varint_that_is_cut_off_is_refused(value, keep):
    data = varint(value)
    short = data[: min(keep, len(data) - 1)]
    with pytest.raises(ValueError, match="does not end"):
        read_varint(memoryview(short), 0, len(short))


def test_a_varint_that_never_ends_is_refused():
    with pytest.raises(ValueError, match="does not end"):
        read_varint(memoryview(b"\x80" * 40), 0, 40)


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.one_of(uint64, st.binary(max_size=200)))))
def test_fields_come_back_in_order_with_their_place(parts):
    pieces = [message(n, v) if isinstance(v, bytes) else integer(n, v) for n, v in parts]
    data = memoryview(b"".join(pieces))
    found = list(fields(data))
    assert [bytes(data[f.start : f.end]) for f in found] == pieces
    for field, (number, value) in zip(found, parts, strict=True):
        assert field.number == number
        assert field.is_bytes is isinstance(value, bytes)
        if field.is_bytes:
            assert bytes(data[field.value : field.end]) == value
        else:
            assert field.value == value


def test_fixed_width_fields_are_skipped():
    attribute = onnx.AttributeProto(f=1.5, name="x").SerializeToString()
    double = bytes([1 << 3 | 1]) + (7).to_bytes(8, "little")
    data = memoryview(attribute + double)
    found = {f.number: f.value for f in fields(data) if not f.is_bytes}
    assert found == {2: 0x3FC00000, 1: 7}


def test_a_part_of_a_buffer_can_be_parsed():
    inner = integer(3, 5)
    data = memoryview(b"\xff\xff" + inner + b"\xff")
    assert list(fields(data, 2, 2 + len(inner))) == [Field(data, 3, 2, 4, 5, False)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x01", "field number 0 at byte 0"),
        (b"\x08\x01\x0b", "wire type 3 at byte 2"),
        (b"\x0f", "wire type 7"),
        (header(1, 10) + b"123", "reaches 7 bytes beyond the end"),
        (b"\x0d\x01", "reaches 3 bytes beyond"),
        (b"\x09\x01", "reaches 7 bytes beyond"),
        (b"\x08", "does not end"),
    ],
)
def test_bytes_that_are_no_message_are_refused_with_the_offset(data, reason):
    with pytest.raises(ValueError, match=reason):
        list(fields(memoryview(data)))


@given(st.binary(max_size=60))
def test_random_bytes_are_parsed_or_refused(data):
    try:
        found = list(fields(memoryview(data)))
    except ValueError:
        return
    assert b"".join(data[f.start : f.end] for f in found) == data


def test_a_header_and_its_payload_are_a_message():
    assert header(7, 300) + bytes(300) == message(7, bytes(300))
    assert message(1, b"")[0] == 1 << 3 | BYTES
