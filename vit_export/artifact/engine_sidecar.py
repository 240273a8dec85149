"""An `.engine` file and what stands beside it in `NAME.engine.json`.

A TensorRT plan is a blob that names nothing of ours and runs on one version and one kind of GPU.
So the sidecar carries what an .onnx file holds in its metadata, and what the plan is tied to.
Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vit_export.artifact.manifest import Manifest, Stage
from vit_export.errors import ArtifactError

SCHEMA_VERSION = 1
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Range:
    """Shapes of one input that a profile serves; `opt` is the one it is fastest at."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = Mapping[str, Range]  # by input


class BatchRange(NamedTuple):
    """Smallest, best and largest size of a dynamic dimension."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, as far as an engine depends on it.

    Attributes:
        name: e.g. `"NVIDIA L4"`.
        compute_capability: e.g. `"8.9"`.
        driver: CUDA version that the driver supports, e.g. `"13.0"`.
    """

    name: str
    compute_capability: str
    driver: str = ""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclass(frozen=True, kw_only=True)
class Check:
    """A golden check that was passed on a device, after the build.

    Attributes:
        gpu: The device.
        plan_sha256: Hash of the engine file.
        version: Of the backend that ran it.
    """

    gpu: Gpu
    plan_sha256: str
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Everything that is known of an engine.

    Attributes:
        manifest: That of the source, with the engine's precision and its stage in the certificate.
        backend: `"tensorrt"` or `"tensorrt-rtx"`.
        version: Of the backend; a plan runs on no other, unless it is version compatible.
        compute_capabilities: GPUs that it was compiled for.
        gpu: GPU that it was built on; `None` where there was none.
        profiles: Optimization profiles; empty for an engine of fixed shapes.
        plan_sha256: Hash of the engine file.
        plan_bytes: Its size.
        source: The .onnx file, as seen from the engine's folder.
        source_sha256: `graph_sha256` of that file.
        timing_cache_key: What a timing cache must have been made for to be used again; empty
            for a backend that has none.
        options: What was asked for, beyond the defaults.
        proof: What was counted in the network and in the engine.
        rebuild: Arguments of `vit-export engine SOURCE` that make the engine again.
        checks: Golden checks that were passed after the build.
    """

    manifest: Manifest
    backend: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: Gpu | None = None
    profiles: tuple[Profile, ...]
    plan_sha256: str
    plan_bytes: int
    source: str
    source_sha256: str
    timing_cache_key: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)
    rebuild: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def measured(self) -> Stage:
        """The engine's own line of the certificate."""
        return self.manifest.certificate[-1]

    def replace(self, **changes: Any) -> Sidecar:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Indented JSON, so that a person can read it."""
        values = {**dataclasses.asdict(self), "manifest": self.manifest.to_dict()}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the file; what stood there stays until the new one is whole.

        Several processes may write it at once: each has a temporary name of its own.
        """
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            with part.open("x", encoding="utf-8") as stream:
                stream.write(self.to_json())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, engine: str | os.PathLike[str]) -> Sidecar:
        """Read what stands beside an engine.

        Raises:
            ArtifactError: There is no sidecar, or it is damaged.
        """
        path = sidecar_path(engine)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ArtifactError(
                f"{engine}: there is no {path.name} beside it, without which nobody knows what "
                "it takes and on what it runs; copy it along, or build the engine again: "
                "vit-export engine MODEL.onnx"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: cannot be read ({error})") from error
        try:
            return cls._from_dict(json.loads(text), path.name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path}: damaged, or not the sidecar of an engine ({error!r}); build the engine "
                "again: vit-export engine MODEL.onnx"
            ) from error

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any], name: str) -> Sidecar:
        if data["schema_version"] > SCHEMA_VERSION:
            raise ArtifactError(
                f"{name}: has schema version {data['schema_version']}, this vit-export reads up "
                f"to {SCHEMA_VERSION}; upgrade with: pip install -U vit-export"
            )
        known = {entry.name for entry in dataclasses.fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        for kind, entries in _KINDS.items():
            for entry in entries:
                if entry in values:
                    _of_kind(kind, entry, values[entry])
        _of_kind(dict, "proof.network", values.get("proof", {}).get("network", {}))
        values["manifest"] = Manifest.from_json(json.dumps(data["manifest"]), source=name)
        if not values["manifest"].certificate or not values["manifest"].inputs:
            raise ValueError("its manifest has no inputs, or an empty certificate")
        values["gpu"] = None if data.get("gpu") is None else _gpu(data["gpu"])
        values["profiles"] = tuple(_profile(profile) for profile in data["profiles"])
        values["checks"] = tuple(_check(check) for check in data.get("checks", ()))
        for entry in ("compute_capabilities", "rebuild"):
            values[entry] = tuple(_of_kind(str, entry, word) for word in data[entry])
        return cls(**values)

    def source_path(self, engine: Path) -> Path:
        """Where the .onnx file lies: where it lay at the build, or copied along with the engine."""
        there = engine.parent / self.source
        beside = engine.parent / there.name
        return beside if beside.exists() and not there.exists() else there

    def rebuild_arguments(self, engine: Path) -> list[str]:
        """Arguments of the `vit-export` command that makes the engine again, for the GPU here."""
        return ["engine", str(self.source_path(engine)), *self.rebuild, "-o", str(engine)]

    def rebuild_command(self, engine: Path) -> str:
        """That command, to be typed."""
        return shlex.join(["vit-export", *self.rebuild_arguments(engine)])


_KINDS: Mapping[type, tuple[str, ...]] = {  # of the fields of a sidecar, in JSON
    str: ("backend", "version", "plan_sha256", "source", "source_sha256", "timing_cache_key"),
    int: ("plan_bytes",),
    list: ("compute_capabilities", "profiles", "rebuild", "checks"),
    dict: ("manifest", "options", "proof"),
}
_Kind = TypeVar("_Kind")


def _of_kind(kind: type[_Kind], name: str, value: Any) -> _Kind:
    """The value as it is; TypeError unless it is of that kind."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, not of type {kind.__name__}")
    return value


def _gpu(data: Any) -> Gpu:
    return Gpu(**{name: _of_kind(str, name, value) for name, value in data.items()})


def _check(data: Any) -> Check:
    words = {name: _of_kind(str, name, data[name]) for name in data if name != "gpu"}
    return Check(gpu=_gpu(data["gpu"]), **words)


def _profile(data: Any) -> Profile:
    """Raises ValueError where no shape, or one without a batch size, is served."""
    profile = {
        name: Range(*(_shape(entry[end]) for end in ("min", "opt", "max")))
        for name, entry in data.items()
    }
    if not profile:
        raise ValueError("a profile names no input")
    return profile


def _shape(sizes: Any) -> tuple[int, ...]:
    if not _of_kind(list, "a shape", sizes):
        raise ValueError("a shape of a profile is empty")
    return tuple(_of_kind(int, "a dimension", size) for size in sizes)


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """Where an engine's sidecar lies: `NAME.engine.json`."""
    path = Path(engine)
    return path.with_name(path.name + ".json")


def seen_from(folder: Path, file: Path) -> str:
    """Path of a file relative to a folder, whichever links lead to either."""
    place = Path(os.path.realpath(file.parent), file.name)
    try:
        return Path(os.path.relpath(place, os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive of Windows
        return place.as_posix()


def file_sha256(path: Path) -> str:
    """Hash of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def batch_ends(profile: Profile) -> BatchRange:
    """Batch sizes that a profile serves."""
    ranges = next(iter(profile.values()))
    return BatchRange(ranges.min[0], ranges.opt[0], ranges.max[0])


def gate_batches(profiles: Sequence[Profile], fixed: int | None = None) -> tuple[int, ...]:
    """Batch sizes to measure an engine at: 1, 2, 3, the best and the largest of each profile.

    Args:
        profiles: Those of the engine.
        fixed: The batch size of an engine without profiles.
    """
    if not profiles:
        return (fixed or 1,)
    found: set[int] = set()
    for profile in profiles:
        ends = batch_ends(profile)
        found |= {size for size in (1, 2, 3) if ends.min <= size <= ends.max}
        found |= {ends.min, ends.opt, ends.max}
    return tuple(sorted(found))
