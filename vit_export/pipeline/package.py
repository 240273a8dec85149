"""Turn an artifact into a folder that is ready to use at a target."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_export.artifact.engine_sidecar import is_engine
from vit_export.artifact.golden import Golden, find_golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import staging_folder
from vit_export.deploy.package_cpp import write_cpp
from vit_export.errors import ArtifactError, check_known

TARGETS: Mapping[str, Callable[[OnnxFile, Path, Path], None]] = {"cpp": write_cpp}


@dataclass(frozen=True)
class PackageResult:
    """A folder that `package` has written.

    Attributes:
        folder: Where it is.
        target: What it is for.
        files: All files in it, relative to it, in sorted order.
        size_bytes: Their size.
    """

    folder: Path
    target: str
    files: tuple[str, ...]
    size_bytes: int


def package(
    artifact: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    target: str,
) -> PackageResult:
    """Write a complete folder for a target: model, golden file, sources, README.

    Needs no torch. The folder is made under a temporary name, and appears whole.

    Args:
        artifact: An `.onnx` file of vit-export, with its golden file beside it.
        output: A folder that does not exist or is empty; by default `NAME-TARGET` in the current
            folder.
        target: `"cpp"`: a CMake project with the library, an example and the program vit-classify.

    Raises:
        ArtifactError: The artifact or its golden file is missing, damaged or changed, or the
            target cannot run it.
        OutputError: The folder cannot be written, or is not empty.
        UsageError: The target is unknown.
    """
    check_known("target", target, TARGETS)
    path = Path(artifact)
    folder = Path(output) if output is not None else Path(f"{path.stem}-{target}")
    if is_engine(path):
        raise ArtifactError(
            f"{path}: is an engine; the target {target!r} takes .onnx files",
            hint="give the .onnx file that it was built from",
        )
    file = OnnxFile.read(path)
    file.check_external_data()
    if file.manifest is not None:
        file.check_certified()
    golden = find_golden(path)
    Golden.read(golden)  # a damaged one would be noticed on the device only
    with staging_folder(folder) as staged:
        TARGETS[target](file, golden, staged)
        files = [found for found in sorted(staged.rglob("*")) if found.is_file()]
        names = tuple(found.relative_to(staged).as_posix() for found in files)
        size_bytes = sum(found.stat().st_size for found in files)
    return PackageResult(folder, target, names, size_bytes)
