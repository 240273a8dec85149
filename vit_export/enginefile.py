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
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vit_export.errors import ArtifactError
from vit_export.manifest import Hop, Manifest

SCHEMA_VERSION = 1
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Range:
    """Shapes of one input that a profile serves; `opt` is the one it is fastest at."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = Mapping[str, Range]  # by input


class Ends(NamedTuple):
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
    """A golden check that was passed on a device, after the build."""

    gpu: Gpu
    plan_sha256: str


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Everything that is known of an engine.

    Attributes:
        manifest: That of the source, with the engine's precision and its hop in the certificate.
        backend: `"tensorrt"` or `"tensorrt-rtx"`.
        version: Of the backend; a plan runs on no other, unless it is version compatible.
        compute_capabilities: GPUs that it was compiled for.
        gpu: GPU that it was built on; `None` where there was none.
        profiles: Optimization profiles; empty for an engine of fixed shapes.
        plan_sha256: Hash of the engine file.
        plan_bytes: Its size.
        source: Base name of the .onnx file.
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
    def measured(self) -> Hop:
        """The engine's own line of the certificate."""
        return self.manifest.certificate[-1]

    def replace(self, **changes: Any) -> Sidecar:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Indented JSON, so that a person can read it."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the file; what stood there stays until the new one is whole."""
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(self.to_json(), encoding="utf-8")
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
        values["manifest"] = Manifest.from_json(json.dumps(data["manifest"]), source=name)
        if not values["manifest"].certificate:
            raise ValueError("the certificate of its manifest is empty")
        values["gpu"] = None if data.get("gpu") is None else Gpu(**data["gpu"])
        values["profiles"] = tuple(_profile(profile) for profile in data["profiles"])
        values["checks"] = tuple(
            Check(**{**check, "gpu": Gpu(**check["gpu"])}) for check in data.get("checks", ())
        )
        for entry in ("compute_capabilities", "rebuild"):
            values[entry] = tuple(map(str, data[entry]))
        return cls(**values)

    def rebuild_arguments(self, engine: Path) -> list[str]:
        """Arguments of the `vit-export` command that makes the engine again, for the GPU here."""
        return ["engine", str(engine.parent / self.source), *self.rebuild, "-o", str(engine)]

    def rebuild_command(self, engine: Path) -> str:
        """That command, to be typed."""
        return shlex.join(["vit-export", *self.rebuild_arguments(engine)])


def _profile(data: Mapping[str, Any]) -> Profile:
    return {
        name: Range(*(tuple(map(int, entry[end])) for end in ("min", "opt", "max")))
        for name, entry in data.items()
    }


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """Where an engine's sidecar lies: `NAME.engine.json`."""
    path = Path(engine)
    return path.with_name(path.name + ".json")


def file_sha256(path: Path) -> str:
    """Hash of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def batch_ends(profile: Profile) -> Ends:
    """Batch sizes that a profile serves."""
    ranges = next(iter(profile.values()))
    return Ends(ranges.min[0], ranges.opt[0], ranges.max[0])


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
