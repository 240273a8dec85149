"""TensorRT engines and the result of a build as text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.engine_sidecar import Profile, Sidecar
from vit_export.cli.report.exports import next_lines
from vit_export.cli.report.gates import VERDICT, certificate_text
from vit_export.cli.report.tables import pairs, size

if TYPE_CHECKING:  # it imports onnx
    from vit_export.pipeline.engine import EngineResult


def engine_file_text(path: Path, sidecar: Sidecar) -> str:
    """Return the sidecar of an engine file: its origin, its GPU, its shapes, its certificate."""
    manifest = sidecar.manifest
    rows = [
        ("file", f"{path}  {size(sidecar.plan_bytes)}"),
        ("engine of", f"{sidecar.backend} {sidecar.version}"),
        ("runs on", f"compute capability {', '.join(sidecar.compute_capabilities)}"),
        ("built on", str(sidecar.gpu) if sidecar.gpu is not None else "a machine without a GPU"),
        *(("input", str(spec)) for spec in manifest.inputs),
        *(("output", str(spec)) for spec in manifest.outputs),
        *(("profile", _profile_text(profile)) for profile in sidecar.profiles),
        ("built from", f"{sidecar.source} ({sidecar.source_sha256[:12]})"),
        ("options", ", ".join(f"{name} {value}" for name, value in sidecar.options.items())),
        ("products", _product_counts(sidecar)),
        ("plan", str(sidecar.proof.get("plan", ""))),
        ("variant", f"{manifest.variant}, {manifest.precision}"),
        ("weights of", manifest.weights.source),
        ("rebuild", sidecar.rebuild_command(path)),
        ("gate", _verdict(sidecar)),
        *(("passed on", str(check.gpu)) for check in sidecar.checks),
    ]
    return "\n".join([pairs(rows), "", certificate_text(manifest.certificate)])


def engine_text(result: EngineResult) -> str:
    """Return the measurements of a built engine, a closing line, and the next commands."""
    sidecar, path = result.sidecar, result.path
    quoted = shlex.quote(str(path))
    return "\n".join([
        certificate_text(sidecar.manifest.certificate),
        "",
        *(f"TensorRT warns: {warning}" for warning in result.warnings),
        f"{path}  {size(sidecar.plan_bytes)}  {result.seconds:.1f} s  {sidecar.backend} "
        f"{sidecar.version} for {', '.join(sidecar.compute_capabilities)}  "
        f"{_product_counts(sidecar)} products  gate {_verdict(sidecar)}",
        *next_lines([f"predict {quoted} PHOTO.jpg", f"validate {quoted}    (on the device)"]),
    ])  # fmt: skip


def _product_counts(sidecar: Sidecar) -> str:
    counts = sidecar.proof.get("network", {})
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _profile_text(profile: Profile) -> str:
    def shape(sizes: Sequence[int]) -> str:
        return "x".join(map(str, sizes))

    return ", ".join(
        f"{name} {shape(ranges.min)} to {shape(ranges.max)}, fastest at {shape(ranges.opt)}"
        for name, ranges in profile.items()
    )


def _verdict(sidecar: Sidecar) -> str:
    stage = sidecar.measured
    return f"{VERDICT[stage.passed]}{f': {stage.reason}' if stage.reason else ''}"
