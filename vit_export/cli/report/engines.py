"""What is known of an engine, and what a build made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.engine_sidecar import Profile, Sidecar
from vit_export.cli.report.gates import VERDICT, certificate
from vit_export.cli.report.tables import pairs, size

if TYPE_CHECKING:
    from vit_export.pipeline.engine import EngineResult


def described(path: Path, sidecar: Sidecar) -> str:
    """What is in an engine, as its sidecar says."""
    manifest = sidecar.manifest
    asked = ", ".join(f"{name} {value}" for name, value in sidecar.options.items())
    rows = [
        ("file", f"{path}  {size(sidecar.plan_bytes)}"),
        ("engine of", f"{sidecar.backend} {sidecar.version}"),
        ("runs on", f"compute capability {', '.join(sidecar.compute_capabilities)}"),
        ("built on", str(sidecar.gpu) if sidecar.gpu is not None else "a machine without a GPU"),
        *(("input", str(spec)) for spec in manifest.inputs),
        *(("output", str(spec)) for spec in manifest.outputs),
        *(("profile", line) for line in _profiles(sidecar.profiles)),
        ("built from", f"{sidecar.source} ({sidecar.source_sha256[:12]})"),
        ("asked for", asked),
        ("products", _counts(sidecar)),
        ("plan", str(sidecar.proof.get("plan", ""))),
        ("variant", f"{manifest.variant}, {manifest.precision}"),
        ("weights of", manifest.weights.source),
        ("rebuild", sidecar.rebuild_command(path)),
        ("gate", _verdict(sidecar)),
        *(("passed on", str(check.gpu)) for check in sidecar.checks),
    ]
    return "\n".join([pairs(rows), "", certificate(manifest.certificate)])


def _counts(sidecar: Sidecar) -> str:
    counted = sidecar.proof.get("network", {})
    return ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))


def _profiles(profiles: Sequence[Profile]) -> list[str]:
    def shape(sizes: Sequence[int]) -> str:
        return "x".join(map(str, sizes))

    return [
        ", ".join(
            f"{name} {shape(ranges.min)} to {shape(ranges.max)}, best at {shape(ranges.opt)}"
            for name, ranges in profile.items()
        )
        for profile in profiles
    ]


def _verdict(sidecar: Sidecar) -> str:
    stage = sidecar.measured
    return f"{VERDICT[stage.passed]}{f': {stage.reason}' if stage.reason else ''}"


def built(result: EngineResult) -> str:
    """What a build made, and what to do next."""
    sidecar, path = result.sidecar, result.path
    lines = [
        certificate(sidecar.manifest.certificate),
        "",
        f"{path}  {size(sidecar.plan_bytes)}  {result.seconds:.1f} s  {sidecar.backend} "
        f"{sidecar.version} for {', '.join(sidecar.compute_capabilities)}  "
        f"{_counts(sidecar)} products  gate {_verdict(sidecar)}",
        *(f"TensorRT warns: {warning}" for warning in result.warnings),
    ]
    name = shlex.quote(str(path))
    following = [f"predict {name} PHOTO.jpg", f"validate {name}    (on the device)"]
    lines += [f"{'next:' if i == 0 else '     '} vit-export {c}" for i, c in enumerate(following)]
    return "\n".join(lines)
