"""Read an .onnx file as bytes: without onnx or torch, and without copying the weights.

A device needs the manifest, the inputs and outputs, the names of missing weight files, and the
outputs of inner blocks.
"""

from __future__ import annotations

import contextlib
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
    MIN_EXTERNAL_BYTES,
    NODE,
    OPSET,
    OUTPUT,
    PRODUCER,
    PRODUCER_VERSION,
    Field,
    Initializer,
    Node,
    WireError,
    external_entries,
    fields,
    graph_fields,
    message,
    parse_initializer,
    parse_node,
    parse_value,
    text,
    without_data,
)
from vit_export.artifact.open_file import open_file
from vit_export.errors import ArtifactError

CHUNK_BYTES = 1 << 24
COPY_AGAIN = "copy the file again, or export the model again"


@dataclass(frozen=True)
class OnnxFile:
    """Contents of an .onnx file, without the weights.

    Attributes:
        path: The file.
        size_bytes: Its size, external data excluded.
        ir_version: Version of the ONNX format.
        producer: Name and version of the tool that wrote it.
        opsets: Operator set version by domain; the default domain is `""`.
        metadata: `metadata_props`, with vit-export's manifest.
        graph_name: Name of the graph.
        inputs: Graph inputs, initializers excluded.
        outputs: Graph outputs.
        nodes: Operators of the graph.
        initializers: Constants of the graph, and where their bytes are.
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
            ArtifactError: No such file, no ONNX file, or a truncated one.
        """
        path = Path(path)
        with mapped(path) as buffer:
            try:
                return _parse_model(path, buffer)
            except (ValueError, KeyError, IndexError) as error:
                if kind := _checkpoint_kind(buffer):
                    raise ArtifactError(
                        f"{path}: not an ONNX file but a checkpoint ({kind})",
                        hint=f"export it first: vit-export onnx --weights {path}",
                    ) from error
                raise ArtifactError(
                    f"{path}: not an ONNX file, or a truncated one ({error}; {len(buffer)} bytes)",
                    hint=COPY_AGAIN,
                ) from error

    @property
    def manifest(self) -> Manifest | None:
        """vit-export's manifest; `None` in a file of another tool.

        Raises:
            ArtifactError: It is damaged, or of a newer schema.
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
    def total_bytes(self) -> int:
        """Size of the .onnx file and of the files beside it."""
        return self.size_bytes + sum(file.stat().st_size for file in self.external_files)

    @property
    def weights_bytes(self) -> int:
        """Size of all raw weights."""
        return sum(max(t.nbytes, 0) for t in self.initializers)

    @property
    def weights_folder(self) -> Path:
        """Folder above every file that holds weights, with symbolic links resolved.

        ONNX Runtime refuses external data outside the folder that it is given.
        """
        files = (self.path, *self.external_files)
        return Path(os.path.commonpath([os.path.dirname(os.path.realpath(f)) for f in files]))

    @property
    def has_linked_weights(self) -> bool:
        """Whether symbolic links lead to weights outside the folder of the .onnx file itself."""
        return self.weights_folder != Path(os.path.realpath(self.path)).parent

    def check_external_data(self) -> None:
        """Check that every file of weights is there and complete.

        Raises:
            ArtifactError: Naming the file that is missing or too short.
        """
        for file in self.external_files:
            if not file.is_file():
                raise ArtifactError(
                    f"{self.path}: its weights are in {file.name!r}, which is not beside it",
                    hint=f"copy {file.name} into {self.path.parent}",
                )
        for tensor in self.initializers:
            if tensor.location:
                file = self.path.parent / tensor.location
                needed = tensor.offset + max(tensor.nbytes, 0)
                if file.stat().st_size < needed:
                    raise ArtifactError(
                        f"{file}: is truncated: it holds {file.stat().st_size} bytes, but "
                        f"{tensor.name!r} of {self.path.name} ends at byte {needed}",
                        hint=COPY_AGAIN,
                    )

    def check_certified(self) -> str:
        """Check that graph and weights are those that the manifest certifies.

        Returns:
            Its `graph_sha256`.

        Raises:
            ArtifactError: Graph or weights were changed after they were measured.
        """
        actual = self.graph_sha256()
        certified = self.manifest.graph_sha256 if self.manifest is not None else ""
        if actual != certified:
            raise ArtifactError(
                f"{self.path}: graph or weights were changed after they were measured, or the "
                f"copy is damaged (graph_sha256 {actual[:12]}, the manifest certifies "
                f"{certified[:12] or 'none'})",
                hint=COPY_AGAIN,
            )
        return actual

    def expose(self, names: Collection[str], *, inline: bool = False) -> bytes:
        """Return the model with inner tensors as further graph outputs.

        The weights stay in their files: the model refers to them as external data, relative to
        `weights_folder`, which a runtime needs to be given.

        Args:
            names: Tensors to expose; those that are outputs already stay as they are.
            inline: Copy weights inside the file instead, for a runtime that takes no folder.
        """
        known = {spec.name for spec in self.outputs}
        extra = b"".join(
            message(OUTPUT, message(1, name.encode())) for name in names if name not in known
        )
        locations = {"": self._location(self.path)} | {
            name: self._location(self.path.parent / name)
            for name in {tensor.location for tensor in self.initializers} - {""}
        }
        with mapped(self.path) as buffer:
            model = [bytes(buffer[f.start : f.end]) for f in fields(buffer) if f.number != GRAPH]
            tensors = iter(self.initializers)
            body = []
            for part in graph_fields(buffer):
                if part.number == INITIALIZER:
                    tensor = next(tensors)
                    if not (inline and not tensor.location):
                        location = locations[tensor.location]
                        body.append(self._relocated(buffer, part, tensor, location))
                        continue
                body.append(bytes(buffer[part.start : part.end]))
            return b"".join(model) + message(GRAPH, b"".join(body) + extra)

    def _relocated(
        self, buffer: memoryview, part: Field, tensor: Initializer, location: str
    ) -> bytes:
        """Return a tensor that refers to its data by a location; small data stays inside."""
        small = not tensor.location and tensor.nbytes < MIN_EXTERNAL_BYTES
        if small or location == tensor.location:
            return bytes(buffer[part.start : part.end])
        where = external_entries(location, tensor.offset, tensor.nbytes)
        return message(INITIALIZER, without_data(buffer, part) + where)

    def _location(self, file: Path) -> str:
        """Path of a file relative to `weights_folder`."""
        return Path(os.path.realpath(file)).relative_to(self.weights_folder).as_posix()

    def graph_sha256(self) -> str:
        """Return the hash of the model without its metadata, wherever its weights are stored."""
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
        """Yield the data of an initializer, piece by piece.

        Args:
            buffer: This file, from `mapped`.
            tensor: One of `initializers` that is stored raw.

        Raises:
            ArtifactError: The file of weights is missing, or ends too early.
        """
        if not tensor.location:
            end = tensor.offset + tensor.nbytes
            for at in range(tensor.offset, end, CHUNK_BYTES):
                yield bytes(buffer[at : min(at + CHUNK_BYTES, end)])
            return
        with open_file(self.path.parent / tensor.location, what="file of weights") as stream:
            stream.seek(tensor.offset)
            left = tensor.nbytes
            while left:
                chunk = stream.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise ArtifactError(f"{tensor.location}: ends before {tensor.name!r} does")
                yield chunk
                left -= len(chunk)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Map a file into memory, read-only; the map is released on leaving.

    Raises:
        ArtifactError: There is no such file, or it is empty or no regular file.
    """
    try:
        with open_file(path) as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise ArtifactError(f"{path}: the file is empty", hint=COPY_AGAIN)
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    view = memoryview(memory)
    try:
        yield view
    finally:
        view.release()
        memory.close()


def _checkpoint_kind(buffer: memoryview) -> str:
    """Return the format of a checkpoint by its first bytes; empty for any other file."""
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
