"""Artifacts for the checks, made by the command line when a check first needs them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_checks.needs import need
from gpu_checks.outcome import FailedError, expect

if TYPE_CHECKING:
    from vit_export.artifact.manifest import Stage

ROOT = Path(__file__).resolve().parents[2]
IN_REPOSITORY = ROOT / "tests" / "edge" / "data"  # `edge` in most precisions: nothing to make
EDGE = IN_REPOSITORY / "edge.onnx"
QUANTIZE = {"fp16-io": ("--precision", "fp16", "--fp16-io")}  # of names that are no precision
EXPORT = ("torch", "onnx", "onnxscript", "onnxsim", "safetensors")


def command(*arguments: str | Path) -> dict[str, Any]:
    """Run a `vit-export` command and return its JSON object.

    Raises:
        FailedError: The exit status was not 0.
    """
    line = [sys.executable, "-m", "vit_export", *map(str, arguments), "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    answer: dict[str, Any] = json.loads(last) if last.startswith("{") else {}
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        message = answer.get("error") or last_line
        raise FailedError(f"vit-export {' '.join(map(str, arguments))}: {message}")
    return answer


def exported(folder: Path, variant: str, precision: str = "fp32") -> Path:
    """Return an artifact of a variant with random weights of seed 0; made once per folder.

    Raises:
        NotRunError: A package that exports or quantizes is not installed.
        FailedError: The artifact did not pass its gate.
    """
    name = f"{variant}.onnx" if precision == "fp32" else f"{variant}.{precision}.onnx"
    if variant == "edge" and (IN_REPOSITORY / name).exists():
        return IN_REPOSITORY / name
    path = folder / name
    if path.exists():
        return path
    if precision == "fp32":
        need(*EXPORT)
        command("onnx", "--variant", variant, "-o", path)
    else:
        need("onnx")
        source = exported(folder, variant)
        command(
            "quantize", source, *QUANTIZE.get(precision, ("--precision", precision)), "-o", path
        )
    return path


def validated(artifact: Path, provider: str) -> dict[str, Any]:
    """Run the gate on a provider and return its figures.

    TensorRT gets a profile with all batches of the gate: without one, its provider builds another
    engine for each batch that leaves the range of the engine before.

    Raises:
        FailedError: The gate did not pass, or another provider ran the artifact.
    """
    from vit_export.artifact.golden import BATCHES, Golden, find_golden
    from vit_export.errors import VitExportError
    from vit_export.gate.validate import compare
    from vit_export.runtime import load
    from vit_export.runtime.onnxruntime.options import DEFAULTS, EngineOptions

    options = DEFAULTS.get(provider)
    if isinstance(options, EngineOptions):
        options = dataclasses.replace(options, profile=(BATCHES[0], BATCHES[-1], BATCHES[-1]))
    try:
        runner = load(artifact, provider=provider, options=options).runner
        stage = compare(runner, Golden.read(find_golden(artifact)), stage=provider).stage
    except VitExportError as error:
        raise FailedError(str(error)) from error
    return gate_numbers(stage, provider)


def gate_numbers(stage: Stage, provider: str) -> dict[str, Any]:
    """Return the figures of a gate that passed on the provider; raise FailedError otherwise."""
    expect(stage.passed is True, f"the gate did not pass: {stage.reason}")
    expect(
        stage.provider == provider, f"{stage.provider!r} ran the artifact, expected {provider!r}"
    )
    names = ("max_abs", "tolerance", "cosine", "batches")
    return {name: getattr(stage, name) for name in names if getattr(stage, name) is not None}
