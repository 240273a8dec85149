"""An .onnx file read as bytes: no onnx, no torch, no copy of the weights.

It serves what a device needs: manifest, signature, missing external data, outputs of inner
blocks.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_export.artifact.manifest import METADATA_KEY, Manifest, TensorSpec
from vit_export.artifact.onnx_wire import (
    GRAPH,
    GRAPH_NAME,
    INITIALIZER,
    INPUT,
    IR_VERSION,
    METADATA,
    NODE,
    OPSET,
    OUTPUT,
    PRODUCER,
    PRODUCER_VERSION,
    Initializer,
    Node,
    WireError,
    fields,
    graph_fields,
    message,
    parse_initializer,
    parse_node,
    parse_value,
    referring,
    text,
    without_data,
)
from vit_export.errors import ArtifactError

CHUNK_BYTES = 1 << 24


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

    def check_certified(self) -> str:
        """Refuse a file that is no longer the one that its manifest certifies.

        Returns:
            Its `graph_sha256`.

        Raises:
            ArtifactError: Graph or weights were changed after they were measured.
        """
        found = self.graph_sha256()
        certified = self.manifest.graph_sha256 if self.manifest is not None else ""
        if found != certified:
            raise ArtifactError(
                f"{self.path}: is not what its manifest certifies (graph_sha256 {found[:12]}, "
                f"expected {certified[:12] or 'one'}): graph or weights were changed after they "
                "were measured, or a copy is damaged; copy or export it again"
            )
        return found

    def expose(self, names: Collection[str], *, inline: bool = False) -> bytes:
        """Return the model with inner tensors as further graph outputs.

        The weights stay where they are: inline ones are referred to as external data that
        lies in the .onnx file itself. A runtime must be told the folder of the file.

        Args:
            names: Tensors to expose; those that are outputs already are left alone.
            inline: Whether weights inside the file are copied instead, for a runtime that
                cannot be told.
        """
        known = {spec.name for spec in self.outputs}
        extra = b"".join(
            message(OUTPUT, message(1, name.encode())) for name in names if name not in known
        )
        with mapped(self.path) as buffer:
            model = [bytes(buffer[f.start : f.end]) for f in fields(buffer) if f.number != GRAPH]
            body = []
            for part in graph_fields(buffer):
                if part.number == INITIALIZER and not inline:
                    body.append(referring(buffer, part, self.path.name))
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


def _parse_model(path: Path, buffer: memoryview) -> OnnxFile:
    ir_version, producer, opsets, metadata = 0, [], {}, {}
    for f in fields(buffer):
        if f.number == IR_VERSION and not f.is_bytes:
            ir_version = f.value
        elif f.number in (PRODUCER, PRODUCER_VERSION):
            producer.append(text(buffer, f))
        elif f.number == OPSET:
            entry = {p.number: p for p in fields(buffer, f.value, f.end)}
            domain = text(buffer, entry[1]) if 1 in entry else ""
            opsets[domain if domain != "ai.onnx" else ""] = entry[2].value if 2 in entry else 0
        elif f.number == METADATA:
            entry = {p.number: p for p in fields(buffer, f.value, f.end)}
            key, value = (text(buffer, entry[n]) if n in entry else "" for n in (1, 2))
            metadata[key] = value
    graph_name = ""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    nodes: list[Node] = []
    initializers: list[Initializer] = []
    for f in graph_fields(buffer):
        if f.number == GRAPH_NAME:
            graph_name = text(buffer, f)
        elif f.number == NODE:
            nodes.append(parse_node(buffer, f))
        elif f.number == INITIALIZER:
            initializers.append(parse_initializer(buffer, f))
        elif f.number in (INPUT, OUTPUT):
            (inputs if f.number == INPUT else outputs).append(parse_value(buffer, f))
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
