"""The sidecar of a TensorRT engine: the file `NAME.engine.json` beside `NAME.engine`."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct, field

from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.onnx_reader import mapped
from vit_export.artifact.open_file import as_path, read_text, replace_file
from vit_export.artifact.typed_json import SCHEMA_VERSION, Record, decode
from vit_export.artifact.vocabulary import ENGINE_SUFFIXES
from vit_export.errors import ArtifactError

_REBUILD = "build the engine again: vit-export engine MODEL.onnx"
_Sizes = Annotated[tuple[int, ...], Meta(min_length=1)]


class Range(Struct, frozen=True):
    """Shapes of one input in an optimization profile; `opt` is the one it is fastest at."""

    min: _Sizes
    opt: _Sizes
    max: _Sizes


Profile = Annotated[Mapping[str, Range], Meta(min_length=1)]  # by input


class BatchRange(NamedTuple):
    """Smallest, best and largest batch size of an optimization profile."""

    min: int
    opt: int
    max: int


class Gpu(Struct, frozen=True, kw_only=True):
    """A GPU, as far as an engine depends on it."""

    name: str  # e.g. "NVIDIA L4"
    compute_capability: str  # e.g. "8.9"
    driver: str = ""  # CUDA version that the driver supports, e.g. "13.0"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


class Check(Struct, frozen=True, kw_only=True):
    """A golden check that was passed on a device, after the build."""

    gpu: Gpu
    plan_sha256: str  # hash of the engine file
    version: str = ""  # of the backend that ran it


class Sidecar(Record, frozen=True, kw_only=True):
    """The manifest of an engine, and what the engine depends on.

    Attributes:
        manifest: That of the source, with the engine's precision and its stage in the certificate.
        backend: `"tensorrt"` or `"tensorrt-rtx"`.
        version: Version of the backend; no other runs the engine, unless it is version compatible.
        compute_capabilities: GPUs that it was compiled for.
        gpu: GPU that it was built on; `None` where there was none.
        device: Number of that GPU on the machine that built the engine.
        profiles: Optimization profiles; empty for an engine of fixed shapes.
        plan_sha256: Hash of the engine file.
        plan_bytes: Size of the engine file.
        source: The .onnx file, relative to the engine's folder.
        source_sha256: `graph_sha256` of that file.
        timing_cache_key: Identifies the backend and GPU of a timing cache; empty for a backend
            that has none.
        options: Build options other than the defaults.
        proof: Types of the network and of the engine, what the plan's size shows, and warnings.
        rebuild: Arguments of `vit-export engine SOURCE` that build the engine again.
        checks: Golden checks that were passed after the build.
    """

    manifest: Manifest
    backend: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: Gpu | None = None
    device: int | None = None
    profiles: tuple[Profile, ...]
    plan_sha256: str
    plan_bytes: int
    source: str
    source_sha256: str
    timing_cache_key: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)
    rebuild: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not self.manifest.certificate or not self.manifest.inputs:
            raise ValueError("the manifest has no inputs, or an empty certificate")
        if not isinstance(self.proof.get("network", {}), Mapping):
            raise ValueError("proof.network is no object")
        if not isinstance(self.proof.get("warnings", []), list):
            raise ValueError("proof.warnings is no list")

    @property
    def measured(self) -> Stage:
        """The engine's own line of the certificate."""
        return self.manifest.certificate[-1]

    @property
    def batch_ranges(self) -> list[BatchRange]:
        """Batch sizes of each profile; of an engine of fixed shapes, its only one."""
        if not self.profiles:
            fixed = self.manifest.inputs[0].fixed_batch or 1
            return [BatchRange(fixed, fixed, fixed)]
        shapes = [next(iter(profile.values())) for profile in self.profiles]
        return [BatchRange(s.min[0], s.opt[0], s.max[0]) for s in shapes]

    @property
    def gate_batches(self) -> list[int]:
        """Batch sizes to measure the engine at: 1, 2, 3, and those that name each profile."""
        ranges = self.batch_ranges
        return sorted({n for r in ranges for n in (1, 2, 3, *r) if r.min <= n <= r.max})

    def write(self, path: Path) -> None:
        """Write the file."""
        replace_file(path, (self.to_json(indent=1) + "\n").encode())

    @classmethod
    def read(cls, engine: str | os.PathLike[str]) -> Sidecar:
        """Read the sidecar of an engine."""
        path = sidecar_path(engine)
        if not path.exists():
            if not Path(engine).exists():
                raise ArtifactError(f"{engine}: no such engine")
            raise ArtifactError(
                f"{engine}: its sidecar {path.name} is not beside it",
                hint=f"copy {path.name} into the same folder, or {_REBUILD}",
            )
        text = read_text(path, what="sidecar of an engine")
        return decode(text, cls, what=str(path), hint=_REBUILD)

    def source_path(self, engine: Path) -> Path:
        """Return the path of the .onnx file: where it was at the build, or beside the engine."""
        original = engine.parent / self.source
        beside = engine.parent / original.name
        return beside if beside.exists() and not original.exists() else original

    def rebuild_arguments(self, engine: Path) -> list[str]:
        """Return arguments of `vit-export` that build the engine again, for the present GPU."""
        return ["engine", str(self.source_path(engine)), *self.rebuild, "-o", str(engine)]

    def rebuild_command(self, engine: Path) -> str:
        """Return the shell command that builds the engine again."""
        return shlex.join(["vit-export", *self.rebuild_arguments(engine)])


def is_engine(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a TensorRT engine, by its name."""
    return as_path(path).suffix in ENGINE_SUFFIXES


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """Return the path of an engine's sidecar: `NAME.engine.json`, or `NAME.plan.json`."""
    path = Path(engine)
    return path.with_name(path.name + ".json")


def relative_source(folder: Path, file: Path) -> str:
    """Return the path of a file relative to a folder, with symbolic links resolved."""
    place = Path(os.path.realpath(file.parent), file.name)
    try:
        return Path(os.path.relpath(place, os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive of Windows
        return place.as_posix()


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    with mapped(path) as buffer:
        return hashlib.sha256(buffer).hexdigest()


def read_plan_file(path: Path, sidecar: Sidecar) -> bytes:
    """Read an engine file; ArtifactError unless it has the size and hash of its sidecar."""
    try:
        if not path.is_file():
            raise ArtifactError(f"{path}: there is {path.name}.json, but no such engine")
        if (size := path.stat().st_size) != sidecar.plan_bytes:
            problem = (
                f"has {size} bytes, and its sidecar describes an engine of {sidecar.plan_bytes}: "
                "an incomplete copy, or the files of two engines"
            )
        else:
            plan = path.read_bytes()
            if hashlib.sha256(plan).hexdigest() == sidecar.plan_sha256:
                return plan
            problem = f"is not the engine that {path.name}.json describes (sha256 differs)"
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from error
    hint = f"copy both files again, or rebuild: {sidecar.rebuild_command(path)}"
    raise ArtifactError(f"{path}: {problem}", hint=hint)
