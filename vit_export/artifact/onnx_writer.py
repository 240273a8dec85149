"""Write an .onnx file: weights inside or beside it, metadata last.

The weights are copied from file to file; only the graph is held in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vit_export.artifact.onnx_reader import OnnxFile, mapped
from vit_export.artifact.onnx_wire import (
    GRAPH,
    INITIALIZER,
    METADATA,
    MIN_EXTERNAL_BYTES,
    OUTPUT,
    RAW_DATA,
    Initializer,
    external_entries,
    fields,
    graph_fields,
    header,
    message,
    without_data,
)
from vit_export.errors import ArtifactError

MAX_INLINE_BYTES = 2**31 - 1  # a protobuf message cannot be larger
EXTERNAL_FROM_BYTES = 2**31 - 2**24  # of weights; the rest of 2 GiB is for the graph
ALIGNMENT = 4096  # external tensors start at page boundaries, so that they can be mapped


def pack(
    source: OnnxFile,
    destination: Path,
    *,
    metadata: Mapping[str, str],
    outputs: Collection[str],
    external_name: str = "",
) -> None:
    """Write a model with its weights inside the file, or in one file beside it.

    Metadata comes last, so that `stamp` can replace it; that of the source is dropped.

    Args:
        source: The model, its weights inside or beside it.
        destination: File to write.
        metadata: Entries of `metadata_props`.
        outputs: Graph outputs to keep; the others stay as inner tensors.
        external_name: Name of the file of weights beside `destination`; empty for none.

    Raises:
        ArtifactError: The weights do not fit into one file.
    """
    with mapped(source.path) as buffer:
        plan = list(_plan(source, buffer, outputs, external_name))
        graph_size = sum(len(part.head) + part.inline_bytes for part in plan)
        if graph_size > MAX_INLINE_BYTES:
            raise ArtifactError(
                f"{destination.name}: {graph_size / 1e9:.1f} GB do not fit into one protobuf "
                "file (2 GiB at most)",
                hint="store the weights as external data",
            )
        with destination.open("wb") as out:
            for f in fields(buffer):
                if f.number not in (GRAPH, METADATA):
                    out.write(buffer[f.start : f.end])
            out.write(header(GRAPH, graph_size))
            for part in plan:
                out.write(part.head)
                if part.inline_bytes:
                    _copy(source, buffer, part.tensor, out)
            out.write(_encode_metadata(metadata))
        if external_name:
            with (destination.parent / external_name).open("wb") as out:
                for part in plan:
                    if part.tensor is not None and not part.inline_bytes:
                        out.write(b"\0" * (-out.tell() % ALIGNMENT))
                        _copy(source, buffer, part.tensor, out)


@dataclass(frozen=True)
class _Part:
    """A piece of the graph to write, and the tensor whose weights follow it."""

    head: bytes
    tensor: Initializer | None = None
    inline_bytes: int = 0


def _plan(
    source: OnnxFile, buffer: memoryview, outputs: Collection[str], external_name: str
) -> Iterator[_Part]:
    initializers = iter(source.initializers)
    graph_outputs = iter(source.outputs)
    at = 0  # in the external file
    for f in graph_fields(buffer):
        if f.number == OUTPUT and next(graph_outputs).name not in outputs:
            continue
        if f.number != INITIALIZER:
            yield _Part(bytes(buffer[f.start : f.end]))
            continue
        tensor = next(initializers)
        if tensor.nbytes < 0 and tensor.location:
            raise ArtifactError(
                f"{source.path}: the external data of {tensor.name!r} has no length"
            )
        if tensor.nbytes < 0:
            yield _Part(bytes(buffer[f.start : f.end]))
            continue
        rest = without_data(buffer, f)
        if external_name and tensor.nbytes >= MIN_EXTERNAL_BYTES:
            at += -at % ALIGNMENT
            where = external_entries(external_name, at, tensor.nbytes)
            at += tensor.nbytes
            yield _Part(message(INITIALIZER, rest + where), tensor)
        else:
            data = header(RAW_DATA, tensor.nbytes)
            size = len(rest) + len(data) + tensor.nbytes
            yield _Part(header(INITIALIZER, size) + rest + data, tensor, tensor.nbytes)


def _copy(source: OnnxFile, buffer: memoryview, tensor: Initializer | None, out: BinaryIO) -> None:
    if tensor is not None:
        for chunk in source.chunks(buffer, tensor):
            out.write(chunk)


def _encode_metadata(metadata: Mapping[str, str]) -> bytes:
    entries = (message(1, k.encode()) + message(2, v.encode()) for k, v in metadata.items())
    return b"".join(message(METADATA, entry) for entry in entries)


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace the metadata at the end of a file that `pack` wrote.

    Raises:
        ArtifactError: Other fields follow the metadata.
    """
    with mapped(path) as buffer:
        parts = [(f.number == METADATA, f.start) for f in fields(buffer)]
        end = len(buffer)
    first = next((i for i, (is_metadata, _) in enumerate(parts) if is_metadata), len(parts))
    if not all(is_metadata for is_metadata, _ in parts[first:]):
        raise ArtifactError(f"{path}: metadata stands between other fields, expected at the end")
    keep = parts[first][1] if first < len(parts) else end
    with path.open("r+b") as out:
        out.truncate(keep)
        out.seek(keep)
        out.write(_encode_metadata(metadata))
