"""An .onnx file read and written as bytes: no onnx, no torch, no copy of the weights.

It serves what a device needs (manifest, signature, missing external data, outputs of inner
blocks) and what the last stage of an export needs (weights inside the file or beside it,
metadata stamped last). Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_export.errors import ArtifactError
from vit_export.manifest import METADATA_KEY, Manifest, TensorSpec
from vit_export.protobuf import (
    Field,
    WireError,
    fields,
    integer,
    message,
    packed_varints,
    signed,
)

# ModelProto
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, GRAPH, _OPSET, METADATA = 1, 2, 3, 7, 8, 14
# GraphProto
_NODE, _GRAPH_NAME, INITIALIZER, _INPUT, OUTPUT = 1, 2, 5, 11, 12
# TensorProto
_DIMS, _DATA_TYPE, _TENSOR_NAME, RAW_DATA, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_STORED_ELSEWHERE = 1

DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"},
    **{16: "bfloat16", 17: "float8e4m3fn", 19: "float8e5m2", 21: "uint4", 22: "int4"},
}


@dataclass(frozen=True)
class Node:
    """One operator of the graph."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Initializer:
    """One constant of the graph, and where its bytes lie.

    Attributes:
        location: File name relative to the .onnx file; empty when it is inside.
        offset: Byte offset of the data in that file; -1 when it is not stored raw.
        nbytes: Size of the data; -1 when it is not stored raw, or reaches to the file's end.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class OnnxFile:
    """What an .onnx file holds, weights excepted.

    Attributes:
        path: The file.
        opsets: Operator set version by domain; the default domain is `""`.
        metadata: `metadata_props`, vit-export's manifest among them.
    """

    path: Path
    size_bytes: int
    ir_version: int
    producer: str
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    graph_name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    initializers: tuple[Initializer, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OnnxFile:
        """Read everything but the weights.

        Raises:
            ArtifactError: No such file, not an ONNX file, or a truncated one.
        """
        path = Path(path)
        with mapped(path) as buffer:
            try:
                return _parse_model(path, buffer)
            except (ValueError, KeyError, IndexError) as error:
                if kind := _checkpoint_kind(buffer):
                    raise ArtifactError(
                        f"{path}: not an ONNX file but a checkpoint ({kind}); export it first: "
                        f"vit-export onnx --weights {path}"
                    ) from error
                raise ArtifactError(
                    f"{path}: not an ONNX file, or a truncated one ({error}; "
                    f"{len(buffer)} bytes); export or copy it again"
                ) from error

    @property
    def manifest(self) -> Manifest | None:
        """What vit-export wrote into the file; `None` in a file of another tool.

        Raises:
            ArtifactError: It is there, but damaged.
        """
        text = self.metadata.get(METADATA_KEY)
        return None if text is None else Manifest.from_json(text, source=self.path.name)

    @property
    def op_counts(self) -> dict[str, int]:
        """Number of nodes by operator, most frequent first."""
        names = ((f"{n.domain}::" if n.domain else "") + n.op_type for n in self.nodes)
        return dict(Counter(names).most_common())

    @property
    def values(self) -> set[str]:
        """Names of all tensors that nodes compute."""
        return {name for node in self.nodes for name in node.outputs if name}

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files beside the .onnx that hold weights."""
        names = dict.fromkeys(t.location for t in self.initializers if t.location)
        return tuple(self.path.parent / name for name in names)

    @property
    def weights_bytes(self) -> int:
        """Size of all raw weights."""
        return sum(max(t.nbytes, 0) for t in self.initializers)

    def check_external_data(self) -> None:
        """Refuse a file whose weights are missing or cut off.

        Raises:
            ArtifactError: Naming the file that is missing or too short.
        """
        for file in self.external_files:
            if not file.is_file():
                raise ArtifactError(
                    f"{self.path}: its weights lie in {file.name!r}, which is not beside it; "
                    f"copy {file.name} into {self.path.parent}"
                )
        for tensor in self.initializers:
            if tensor.location:
                file = self.path.parent / tensor.location
                needed = tensor.offset + max(tensor.nbytes, 0)
                if file.stat().st_size < needed:
                    raise ArtifactError(
                        f"{file}: holds {file.stat().st_size} bytes, but {tensor.name!r} of "
                        f"{self.path.name} ends at byte {needed}; the file is truncated, "
                        "copy it again"
                    )

    def expose(self, names: Collection[str]) -> bytes:
        """Return the model with inner tensors as further graph outputs.

        The weights stay where they are: inline ones are referred to as external data that
        lies in the .onnx file itself. A runtime must be told the folder of the file.

        Args:
            names: Tensors to expose; those that are outputs already are left alone.
        """
        known = {spec.name for spec in self.outputs}
        extra = b"".join(
            message(OUTPUT, message(1, name.encode())) for name in names if name not in known
        )
        with mapped(self.path) as buffer:
            model = [bytes(buffer[f.start : f.end]) for f in fields(buffer) if f.number != GRAPH]
            body = []
            for part in graph_fields(buffer):
                if part.number == INITIALIZER:
                    body.append(_referring(buffer, part, self.path.name))
                else:
                    body.append(bytes(buffer[part.start : part.end]))
            return b"".join(model) + message(GRAPH, b"".join(body) + extra)

    def graph_sha256(self) -> str:
        """Hash of the model without its metadata, wherever its weights are stored."""
        digest = hashlib.sha256()
        with mapped(self.path) as buffer:
            for f in fields(buffer):
                if f.number not in (METADATA, GRAPH):
                    digest.update(buffer[f.start : f.end])
            tensors = iter(self.initializers)
            for f in graph_fields(buffer):
                if f.number == INITIALIZER and (tensor := next(tensors)).nbytes >= 0:
                    digest.update(without_data(buffer, f))
                    for chunk in self.chunks(buffer, tensor):
                        digest.update(chunk)
                else:
                    digest.update(buffer[f.start : f.end])
        return digest.hexdigest()

    def chunks(self, buffer: memoryview, tensor: Initializer) -> Iterator[bytes]:
        """The data of an initializer, piece by piece.

        Args:
            buffer: This file, as `mapped` gives it.
            tensor: One of `initializers` that is stored raw.

        Raises:
            ArtifactError: The file beside this one ends too early.
        """
        if not tensor.location:
            end = tensor.offset + tensor.nbytes
            for at in range(tensor.offset, end, CHUNK_BYTES):
                yield bytes(buffer[at : min(at + CHUNK_BYTES, end)])
            return
        with (self.path.parent / tensor.location).open("rb") as stream:
            stream.seek(tensor.offset)
            left = tensor.nbytes
            while left:
                chunk = stream.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise ArtifactError(f"{tensor.location}: ends before {tensor.name!r} does")
                yield chunk
                left -= len(chunk)


class mapped:  # noqa: N801  (reads as a function)
    """A read-only memory map of a file, released on leaving."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size == 0:
                    raise ArtifactError(f"{path}: the file is empty; export or copy it again")
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file") from None
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
        self._view = memoryview(self._map)

    def __enter__(self) -> memoryview:
        return self._view

    def __exit__(self, *_: object) -> None:
        self._view.release()
        self._map.close()


def _checkpoint_kind(buffer: memoryview) -> str:
    """The format of a file of weights, by its first bytes; empty for any other file."""
    start = bytes(buffer[:9])
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive, as torch.save writes it"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= len(buffer) - 8:
        return "safetensors"
    return ""


def _text(buffer: memoryview, field: Field) -> str:
    return str(buffer[field.value : field.end], "utf-8")


def graph_fields(buffer: memoryview) -> Iterator[Field]:
    """Fields of the GraphProto."""
    for part in fields(buffer):
        if part.number == GRAPH:
            yield from fields(buffer, part.value, part.end)


def _parse_model(path: Path, buffer: memoryview) -> OnnxFile:
    ir_version, producer, opsets, metadata = 0, [], {}, {}
    for f in fields(buffer):
        if f.number == _IR_VERSION and not f.is_bytes:
            ir_version = f.value
        elif f.number in (_PRODUCER, _PRODUCER_VERSION):
            producer.append(_text(buffer, f))
        elif f.number == _OPSET:
            entry = {p.number: p for p in fields(buffer, f.value, f.end)}
            domain = _text(buffer, entry[1]) if 1 in entry else ""
            opsets[domain if domain != "ai.onnx" else ""] = entry[2].value if 2 in entry else 0
        elif f.number == METADATA:
            entry = {p.number: p for p in fields(buffer, f.value, f.end)}
            key, value = (_text(buffer, entry[n]) if n in entry else "" for n in (1, 2))
            metadata[key] = value
    graph_name = ""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    nodes: list[Node] = []
    initializers: list[Initializer] = []
    for f in graph_fields(buffer):
        if f.number == _GRAPH_NAME:
            graph_name = _text(buffer, f)
        elif f.number == _NODE:
            nodes.append(_parse_node(buffer, f))
        elif f.number == INITIALIZER:
            initializers.append(_parse_initializer(buffer, f))
        elif f.number in (_INPUT, OUTPUT):
            (inputs if f.number == _INPUT else outputs).append(_parse_value(buffer, f))
    if not ir_version or not opsets or not outputs:
        raise WireError("no IR version, operator set or graph output in it")
    constants = {tensor.name for tensor in initializers}
    return OnnxFile(
        path=path,
        size_bytes=len(buffer),
        ir_version=ir_version,
        producer=" ".join(producer),
        opsets=opsets,
        metadata=metadata,
        graph_name=graph_name,
        inputs=tuple(spec for spec in inputs if spec.name not in constants),
        outputs=tuple(outputs),
        nodes=tuple(nodes),
        initializers=tuple(initializers),
    )


def _parse_node(buffer: memoryview, node: Field) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    op_type = domain = ""
    for f in fields(buffer, node.value, node.end):
        if f.number == 1:
            inputs.append(_text(buffer, f))
        elif f.number == 2:
            outputs.append(_text(buffer, f))
        elif f.number == 4:
            op_type = _text(buffer, f)
        elif f.number == 7:
            domain = _text(buffer, f)
    return Node(op_type, domain, tuple(inputs), tuple(outputs))


def _parse_initializer(buffer: memoryview, tensor: Field) -> Initializer:
    name, dtype, shape, location, offset, nbytes = "", 0, [], "", -1, -1
    for f in fields(buffer, tensor.value, tensor.end):
        if f.number == _DIMS:
            shape.extend(packed_varints(buffer, f))
        elif f.number == _DATA_TYPE:
            dtype = f.value
        elif f.number == _TENSOR_NAME:
            name = _text(buffer, f)
        elif f.number == RAW_DATA:
            offset, nbytes = f.value, f.end - f.value
        elif f.number == _EXTERNAL:
            entry = {p.number: _text(buffer, p) for p in fields(buffer, f.value, f.end)}
            if entry.get(1) == "location":
                location, offset = entry.get(2, ""), max(offset, 0)
            elif entry.get(1) == "offset":
                offset = int(entry[2])
            elif entry.get(1) == "length":
                nbytes = int(entry[2])
    named = DTYPES.get(dtype, f"type {dtype}")
    return Initializer(name, named, tuple(shape), location, offset, nbytes)


def _parse_value(buffer: memoryview, value: Field) -> TensorSpec:
    """ValueInfoProto: name 1, type 2 {tensor_type 1 {elem_type 1, shape 2 {dim 1}}}."""
    name, dtype, shape = "", 0, []
    for f in fields(buffer, value.value, value.end):
        if f.number == 1:
            name = _text(buffer, f)
        elif f.number == 2:
            for kind in fields(buffer, f.value, f.end):
                if kind.number != 1:
                    continue
                for part in fields(buffer, kind.value, kind.end):
                    if part.number == 1:
                        dtype = part.value
                    elif part.number == 2:
                        shape = [
                            _parse_dimension(buffer, dim)
                            for dim in fields(buffer, part.value, part.end)
                            if dim.number == 1
                        ]
    return TensorSpec(name, DTYPES.get(dtype, f"type {dtype}"), tuple(shape))


def _parse_dimension(buffer: memoryview, dim: Field) -> int | str:
    for f in fields(buffer, dim.value, dim.end):
        if f.number == 1:
            size = signed(f.value)
            return size if size >= 0 else "?"  # -1 is how old exporters write a dynamic one
        if f.number == 2:
            return _text(buffer, f)
    return "?"


def external_entries(location: str, offset: int, nbytes: int) -> bytes:
    """The fields of a TensorProto that say where its data lies."""
    pairs = (("location", location), ("offset", str(offset)), ("length", str(nbytes)))
    entries = (message(1, k.encode()) + message(2, v.encode()) for k, v in pairs)
    return b"".join(message(_EXTERNAL, e) for e in entries) + integer(_LOCATION, _STORED_ELSEWHERE)


def without_data(buffer: memoryview, tensor: Field) -> bytes:
    """A TensorProto's fields other than where its data is."""
    return b"".join(
        bytes(buffer[f.start : f.end])
        for f in fields(buffer, tensor.value, tensor.end)
        if f.number not in (RAW_DATA, _EXTERNAL, _LOCATION)
    )


CHUNK_BYTES = 1 << 24
MIN_EXTERNAL_BYTES = 1024  # shapes and scalars stay inside: runtimes fold them


def _referring(buffer: memoryview, tensor: Field, file_name: str) -> bytes:
    """A tensor whose raw data is referred to where it lies in the same file."""
    for f in fields(buffer, tensor.value, tensor.end):
        if f.number == RAW_DATA and f.end - f.value >= MIN_EXTERNAL_BYTES:
            where = external_entries(file_name, f.value, f.end - f.value)
            return message(INITIALIZER, without_data(buffer, tensor) + where)
    return bytes(buffer[tensor.start : tensor.end])
