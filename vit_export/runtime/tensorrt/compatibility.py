"""Whether an engine can run here: on this version and this GPU, or one sentence why not."""

from __future__ import annotations

from pathlib import Path

from packaging.version import InvalidVersion, Version

from vit_export.artifact.engine_sidecar import Gpu, Sidecar, file_sha256
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, ProviderError

AMPERE = (8, 0)  # the oldest compute capability of an "ampere-plus" engine


class MisfitError(ProviderError):
    """An engine was built for another version or GPU; it can be rebuilt."""


def check_plan_undamaged(path: Path, sidecar: Sidecar) -> None:
    """Raise ArtifactError unless the plan is the one that its sidecar describes."""
    try:
        _compare(path, sidecar)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from error


def _compare(path: Path, sidecar: Sidecar) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: no such engine; only {path.name}.json is there")
    size = path.stat().st_size
    if size != sidecar.plan_bytes:
        raise ArtifactError(
            f"{path}: holds {size} bytes, its sidecar speaks of {sidecar.plan_bytes}; the copy "
            f"is not whole, or the two do not belong together; copy both again, or rebuild: "
            f"{sidecar.rebuild_command(path)}"
        )
    if file_sha256(path) != sidecar.plan_sha256:
        raise ArtifactError(
            f"{path}: is not the plan that {path.name}.json describes (sha256 differs); copy both "
            f"again, or rebuild: {sidecar.rebuild_command(path)}"
        )


def misfit(sidecar: Sidecar, version: str, gpu: Gpu) -> str:
    """Why an engine cannot run here, with both sides; empty where it can.

    Args:
        sidecar: Of the engine.
        version: Of the backend that is installed.
        gpu: The GPU that is here.
    """
    if not _version_fits(sidecar, version):
        return (
            f"was built with {sidecar.backend} {sidecar.version}, but {sidecar.backend} {version} "
            "is installed"
        )
    targets = ", ".join(sidecar.compute_capabilities)
    compatibility = sidecar.options.get("hardware_compatibility", "none")
    if compatibility == "ampere-plus":
        if _numbers(gpu.compute_capability) < AMPERE:
            return f"was built for compute capability 8.0 and newer, but the GPU here is {gpu}"
    elif gpu.compute_capability not in sidecar.compute_capabilities:
        return f"was built for compute capability {targets}, but the GPU here is {gpu}"
    elif sidecar.backend == "tensorrt" and compatibility == "none":
        built_on = sidecar.gpu.name if sidecar.gpu is not None else "unknown"
        if built_on != gpu.name:
            return f"was built on {sidecar.gpu}, but the GPU here is {gpu}"
    return ""


def check_runs_here(path: Path, sidecar: Sidecar, version: str, gpu: Gpu | None) -> Gpu:
    """Raise an error where an engine cannot run here.

    Returns:
        The GPU that is here.

    Raises:
        ProviderError: There is no GPU.
        MisfitError: Version or GPU are others; the message has the command that rebuilds it.
    """
    if gpu is None:
        raise ProviderError(
            f"{path.name}: there is no NVIDIA GPU here (or no driver), and an engine runs on "
            f"nothing else; it was built for compute capability "
            f"{', '.join(sidecar.compute_capabilities)}; run {sidecar.source_path(path)} "
            "with --provider cpu instead, or see: vit-export doctor"
        )
    if why := misfit(sidecar, version, gpu):
        raise MisfitError(f"{path.name}: {why}; rebuild it here: {sidecar.rebuild_command(path)}")
    return gpu


def source_of(path: Path, sidecar: Sidecar) -> Path:
    """The .onnx file that an engine was built from.

    Raises:
        ArtifactError: It is not there, or another model by now.
    """
    source = sidecar.source_path(path)
    if not source.is_file():
        raise ArtifactError(
            f"{path.name}: the .onnx file that it was built from is not there ({source}); copy it "
            "along"
        )
    found = OnnxFile.read(source).graph_sha256()
    if found != sidecar.source_sha256:
        raise ArtifactError(
            f"{source}: is not the file that {path.name} was built from (graph_sha256 "
            f"{found[:12]}, expected {sidecar.source_sha256[:12]}); copy that one beside it, or "
            f"build a new engine: {sidecar.rebuild_command(path)}"
        )
    return source


def _version_fits(sidecar: Sidecar, version: str) -> bool:
    if sidecar.version == version:
        return True
    if not sidecar.options.get("version_compatible"):
        return False
    try:
        built, here = Version(sidecar.version), Version(version)
    except InvalidVersion:
        return False
    return built.major == here.major and here >= built


def _numbers(compute_capability: str) -> tuple[int, ...]:
    return tuple(map(int, compute_capability.split(".")))
