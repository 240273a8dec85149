"""Write an .onnx file: weights inside or beside it, metadata last.

The weights are copied from file to file; only the graph is held in memory.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from vit_export.artifact import onnx_wire as wire
from vit_export.artifact.onnx_reader import OnnxFile, mapped
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
    external_data: bool = False,
) -> OnnxFile:
    """Write a model; weights above 2 GiB go to a file beside it, `NAME.onnx.data`.

    Metadata comes last, so that `stamp` can replace it; that of the source is dropped. Graph
    outputs that are not among `outputs` stay as inner tensors.
    """
    beside = external_data or source.weights_bytes > EXTERNAL_FROM_BYTES
    external_name = destination.name + ".data" if beside else ""
    with mapped(source.path) as buffer:
        parts, external = _plan(source, buffer, outputs, external_name)
        graph_size = sum(len(head) + (tensor.nbytes if tensor else 0) for head, tensor in parts)
        if graph_size > MAX_INLINE_BYTES:
            raise ArtifactError(
                f"{destination.name}: {graph_size / 1e9:.1f} GB do not fit into one protobuf "
                "file (2 GiB at most)",
                hint="store the weights as external data",
            )
        with destination.open("wb") as out:
            for f in wire.fields(buffer):
                if f.number not in (wire.GRAPH, wire.METADATA):
                    out.write(f.raw)
            out.write(wire.header(wire.GRAPH, graph_size))
            for head, tensor in parts:
                out.write(head)
                if tensor is not None:
                    out.writelines(source.chunks(buffer, tensor))
            out.write(wire.string_map(wire.METADATA, metadata))
        if external:
            with (destination.parent / external_name).open("wb") as out:
                for tensor in external:
                    out.write(b"\0" * (-out.tell() % ALIGNMENT))
                    out.writelines(source.chunks(buffer, tensor))
    return OnnxFile.read(destination)


def _plan(
    source: OnnxFile, buffer: memoryview, outputs: Collection[str], external_name: str
) -> tuple[list[tuple[bytes, wire.Initializer | None]], list[wire.Initializer]]:
    """Return the pieces of the graph, each with the tensor inside it, and the external tensors."""
    parts: list[tuple[bytes, wire.Initializer | None]] = []
    external: list[wire.Initializer] = []
    at = 0  # in the external file
    for f in wire.graph_fields(buffer):
        if f.number == wire.OUTPUT and wire.parse_value(f).name not in outputs:
            continue
        tensor = wire.parse_initializer(f) if f.number == wire.INITIALIZER else None
        if tensor is None or tensor.nbytes < 0:
            if tensor is not None and tensor.location:
                raise ArtifactError(
                    f"{source.path}: the external data of {tensor.name!r} has no length"
                )
            parts.append((f.raw, None))
            continue
        rest = wire.without_data(f)
        if external_name and tensor.nbytes >= wire.MIN_EXTERNAL_BYTES:
            at += -at % ALIGNMENT
            where = wire.external_entries(external_name, at, tensor.nbytes)
            at += tensor.nbytes
            parts.append((wire.message(wire.INITIALIZER, rest + where), None))
            external.append(tensor)
        else:
            data = wire.header(wire.RAW_DATA, tensor.nbytes)
            size = len(rest) + len(data) + tensor.nbytes
            parts.append((wire.header(wire.INITIALIZER, size) + rest + data, tensor))
    return parts, external


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace the metadata at the end of a file that `pack` wrote."""
    with mapped(path) as buffer:
        end = len(buffer)
        for f in wire.fields(buffer):
            if f.number == wire.METADATA:
                end = min(end, f.start)
            elif f.start > end:
                raise ArtifactError(
                    f"{path}: metadata stands between other fields, expected at the end"
                )
    with path.open("r+b") as out:
        out.truncate(end)
        out.seek(end)
        out.write(wire.string_map(wire.METADATA, metadata))
