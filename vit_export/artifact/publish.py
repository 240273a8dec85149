"""A finished artifact takes its name: metadata last, all files or none."""

from __future__ import annotations

import filecmp
from collections.abc import Collection
from pathlib import Path

from vit_export.artifact.golden import golden_path
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import EXTERNAL_FROM_BYTES, pack, stamp
from vit_export.artifact.staging import check_writable, publish
from vit_export.errors import ArtifactError, OutputError, UsageError

SUFFIXES = (".onnx", ".engine")  # of artifacts, which share a golden file where they share a stem


def check_output_name(path: Path) -> None:
    """Raise an error where no artifact can be written, before any work is done.

    Raises:
        UsageError: The name does not end in `.onnx`.
        OutputError: The place cannot be written.
    """
    if path.suffix != ".onnx":
        raise UsageError(f"the output {path} must end in .onnx")
    for file in (path, golden_path(path)):
        check_writable(file)


def check_golden_not_shared(path: Path, golden: Path) -> None:
    """Raise an error where an artifact would take the golden file of another one away.

    `b.onnx` and `b.engine` are both measured with `b.golden.npz`.

    Args:
        path: Where the artifact goes.
        golden: The golden file that goes beside it.

    Raises:
        OutputError: Another artifact of that stem has another golden file.
    """
    place = golden_path(path)
    beside = [path.with_suffix(suffix) for suffix in SUFFIXES if suffix != path.suffix]
    others = [other.name for other in beside if other.exists()]
    if others and place.is_file() and not filecmp.cmp(place, golden, shallow=False):
        raise OutputError(
            f"cannot write {path}: its golden file would replace {place.name}, which {others[0]} "
            "is measured with, and theirs differ; give another name with -o, or remove "
            f"{others[0]} first if it is of no more use"
        )


def pack_artifact(
    source: OnnxFile,
    path: Path,
    manifest: Manifest,
    *,
    outputs: Collection[str],
    external_data: bool = False,
) -> OnnxFile:
    """Write an artifact into a staging folder; above 2 GiB its weights lie beside it.

    Args:
        source: The graph, and its weights wherever they are.
        path: File to write.
        manifest: What stands in its metadata until `publish_artifact` replaces it.
        outputs: Graph outputs to keep.
        external_data: Whether to store the weights beside the file in any case.
    """
    beside = external_data or source.weights_bytes > EXTERNAL_FROM_BYTES
    pack(
        source,
        path,
        metadata=manifest.metadata(),
        outputs=outputs,
        external_name=path.name + ".data" if beside else "",
    )
    return OnnxFile.read(path)


def publish_artifact(
    packed: OnnxFile, others: Collection[Path], manifest: Manifest, path: Path
) -> tuple[Path, ...]:
    """Stamp a measured artifact and move it, with its companions, to its place.

    Args:
        packed: In a staging folder.
        others: Files there that belong to it, e.g. its golden file.
        manifest: With its certificate.
        path: Where the artifact goes.

    Returns:
        Every file written, the artifact last.
    """
    stamp(packed.path, manifest.metadata())
    made = [*packed.external_files, *others, packed.path]
    stale = set(_weights_beside(path)) - {path.parent / file.name for file in made}
    publish(made, path.parent)
    for file in stale:
        file.unlink(missing_ok=True)
    return tuple(path.parent / file.name for file in made)


def _weights_beside(path: Path) -> tuple[Path, ...]:
    """External data of an earlier artifact of this name, which a new one makes useless."""
    try:
        file = OnnxFile.read(path)
    except ArtifactError:
        return ()
    own = path.with_name(path.name + ".data")
    return tuple(f for f in file.external_files if f == own) if file.manifest else ()
