"""Read an .onnx file as bytes: without onnx or torch, and without copying the weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_export.artifact import onnx_wire as wire
from vit_export.artifact.manifest import METADATA_KEY, Manifest, TensorSpec
from vit_export.artifact.open_file import open_file
from vit_export.artifact.vocabulary import ENGINE_SUFFIXES
from vit_export.errors import ArtifactError

CHUNK_BYTES = 1 << 24
COPY_AGAIN = "copy the file again, or export the model again"


@dataclass(frozen=True)
class OnnxFile:
    """Contents of an .onnx file, without the weights."""

    path: Path
    size_bytes: int  # external data excluded
    ir_version: int  # of the ONNX format
    producer: str  # name and version of the tool that wrote it
    opsets: Mapping[str, int]  # operator set version by domain; the default domain is ""
    metadata: Mapping[str, str]  # `metadata_props`, with vit-export's manifest
    inputs: tuple[TensorSpec, ...]  # initializers excluded
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[wire.Node, ...]
    initializers: tuple[wire.Initializer, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OnnxFile:
        """Read everything but the weights."""
        path = Path(path)
        printable = str(path).encode("utf-8", "backslashreplace").decode()
        if printable != str(path):  # ONNX Runtime takes UTF-8 only
            raise ArtifactError(
                f"{printable}: the path is not UTF-8, and ONNX Runtime cannot open it",
                hint="rename the file or folder",
            )
        with mapped(path) as buffer:
            try:
                return _parse_model(path, buffer)
            except (ValueError, KeyError, IndexError) as error:
                if kind := _other_kind(path, buffer):
                    what, hint = kind
                    raise ArtifactError(f"{path}: {what}, not an ONNX file", hint=hint) from error
                raise ArtifactError(
                    f"{path}: not an ONNX file, or a truncated one ({error}; {len(buffer)} bytes)",
                    hint=COPY_AGAIN,
                ) from error

    @functools.cached_property
    def manifest(self) -> Manifest | None:
        """vit-export's manifest; `None` in a file of another tool."""
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

    def check_external_data(self) -> None:
        """Raise ArtifactError that names a file of weights which is missing or too short."""
        for tensor in self.initializers:
            if not tensor.location:
                continue
            file = self.path.parent / tensor.location
            if not file.is_file():
                raise ArtifactError(
                    f"{self.path}: its weights are in {file.name!r}, which is not beside it",
                    hint=f"copy {file.name} into {self.path.parent}",
                )
            needed = tensor.offset + max(tensor.nbytes, 0)
            if (size := file.stat().st_size) < needed:
                raise ArtifactError(
                    f"{file}: is truncated: it holds {size} bytes, but {tensor.name!r} of "
                    f"{self.path.name} ends at byte {needed}",
                    hint=COPY_AGAIN,
                )

    def check_certified(self) -> str:
        """Check that graph and weights are those that were measured; return `graph_sha256`."""
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

    def expose(self, names: Collection[str], *, inline: bool = False, alone: bool = False) -> bytes:
        """Return the model with inner tensors as further graph outputs.

        Its weights are external data, relative to `weights_folder`, which a runtime needs to be
        given; with `inline`, those inside the file are copied instead. With `alone`, the tensors
        are the only outputs, and nodes and weights that they do not need are left out.
        """
        known = set[str]() if alone else {spec.name for spec in self.outputs}
        needed = self._needed(names) if alone else None
        added = [wire.message(1, name.encode()) for name in names if name not in known]
        extra = [wire.message(wire.OUTPUT, output) for output in added]
        folder = self.weights_folder
        with mapped(self.path) as buffer:
            model = [f.raw for f in wire.fields(buffer) if f.number != wire.GRAPH]
            graph = [
                self._relocated(f, folder, inline) if f.number == wire.INITIALIZER else f.raw
                for f in wire.graph_fields(buffer)
                if needed is None or _is_needed(f, needed)
            ]
        return b"".join(model) + wire.message(wire.GRAPH, b"".join(graph + extra))

    def _needed(self, names: Collection[str]) -> set[str]:
        """Return the tensors that the computation of some reads, these included."""
        needed = set(names)
        for node in reversed(self.nodes):  # ONNX: in the order of computation
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
        return needed

    def _relocated(self, field: wire.Field, folder: Path, inline: bool) -> bytes:
        """Return a tensor that refers to its data from a folder; small data stays inside."""
        tensor = wire.parse_initializer(field)
        if not tensor.location and (inline or tensor.nbytes < wire.MIN_EXTERNAL_BYTES):
            return field.raw
        file = self.path.parent / tensor.location if tensor.location else self.path
        location = Path(os.path.realpath(file)).relative_to(folder).as_posix()
        if location == tensor.location:
            return field.raw
        where = wire.external_entries(location, tensor.offset, tensor.nbytes)
        return wire.message(wire.INITIALIZER, wire.without_data(field) + where)

    def graph_sha256(self) -> str:
        """Return the hash of the model without its metadata, wherever its weights are stored."""
        digest = hashlib.sha256()
        with mapped(self.path) as buffer:
            for f in wire.fields(buffer):
                if f.number not in (wire.METADATA, wire.GRAPH):
                    digest.update(f.raw)
            for f in wire.graph_fields(buffer):
                tensor = wire.parse_initializer(f) if f.number == wire.INITIALIZER else None
                if tensor is None or tensor.nbytes < 0:
                    digest.update(f.raw)
                    continue
                digest.update(wire.without_data(f))
                for chunk in self.chunks(buffer, tensor):
                    digest.update(chunk)
        return digest.hexdigest()

    def chunks(self, buffer: memoryview, tensor: wire.Initializer) -> Iterator[bytes]:
        """Yield the data of a raw initializer, piece by piece; `buffer` is this file, `mapped`."""
        stored: contextlib.AbstractContextManager[memoryview] = contextlib.nullcontext(buffer)
        if tensor.location:
            stored = mapped(self.path.parent / tensor.location)
        with stored as data:
            end = tensor.offset + tensor.nbytes
            if end > len(data):
                raise ArtifactError(f"{tensor.location}: ends before {tensor.name!r} does")
            for at in range(tensor.offset, end, CHUNK_BYTES):
                yield bytes(data[at : min(at + CHUNK_BYTES, end)])


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Map a file into memory, read-only, until the context ends."""
    try:
        with open_file(path) as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise ArtifactError(f"{path}: the file is empty", hint=COPY_AGAIN)
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    with memory, memoryview(memory) as view:
        yield view


def _is_needed(field: wire.Field, needed: Collection[str]) -> bool:
    """Whether a field of a graph belongs to the computation of the tensors that are needed."""
    if field.number == wire.NODE:
        return any(name in needed for name in wire.parse_node(field).outputs)
    if field.number == wire.INITIALIZER:
        return wire.parse_initializer(field).name in needed
    return field.number != wire.OUTPUT


def _other_kind(path: Path, buffer: memoryview) -> tuple[str, str] | None:
    """Return what a file is that is no ONNX file, and a hint; `None` where it is unknown."""
    start, suffixes = bytes(buffer[:9]), (".onnx", *ENGINE_SUFFIXES)
    if path.suffix in ENGINE_SUFFIXES:
        return "is an engine already", "give the .onnx file that it was built from"
    if path.name.endswith(tuple(f"{suffix}.json" for suffix in ENGINE_SUFFIXES)):
        return "is an engine's sidecar", f"give the engine: {path.with_suffix('')}"
    if path.name.endswith(".golden.npz"):
        stem = str(path).removesuffix(".golden.npz")
        beside = [stem + suffix for suffix in suffixes if os.path.isfile(stem + suffix)]
        return "is a golden file", f"give the artifact: {' or '.join(beside) or stem + '.onnx'}"
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return (
            "is an image",
            "give an artifact; only predict and embed take images, after it",
        )
    if kind := _checkpoint_kind(start, len(buffer)):
        return f"is a checkpoint ({kind})", f"export it first: vit-export onnx --weights {path}"
    return None


def _checkpoint_kind(start: bytes, size: int) -> str:
    """Return the format of a checkpoint by its first 9 bytes; empty for any other file."""
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive, as torch.save writes it"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    return ""


def _parse_model(path: Path, buffer: memoryview) -> OnnxFile:
    model, graph = map(wire.by_number, (wire.fields(buffer), wire.graph_fields(buffer)))
    if not (model[wire.IR_VERSION] and model[wire.OPSET] and graph[wire.OUTPUT]):
        raise ValueError("no IR version, operator set or graph output in it")
    opsets = {}
    for f in model[wire.OPSET]:
        entry = {part.number: part for part in f.fields()}
        domain = entry[1].text if 1 in entry else ""
        opsets["" if domain == "ai.onnx" else domain] = entry[2].value if 2 in entry else 0
    initializers = tuple(map(wire.parse_initializer, graph[wire.INITIALIZER]))
    constants = {tensor.name for tensor in initializers}
    inputs = map(wire.parse_value, graph[wire.INPUT])
    return OnnxFile(
        path=path,
        size_bytes=len(buffer),
        ir_version=model[wire.IR_VERSION][-1].value,
        producer=" ".join(f.text for f in model[wire.PRODUCER] + model[wire.PRODUCER_VERSION]),
        opsets=opsets,
        metadata=wire.parse_string_map(model[wire.METADATA]),
        inputs=tuple(spec for spec in inputs if spec.name not in constants),
        outputs=tuple(map(wire.parse_value, graph[wire.OUTPUT])),
        nodes=tuple(map(wire.parse_node, graph[wire.NODE])),
        initializers=initializers,
    )
