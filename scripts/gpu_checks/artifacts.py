"""Artifacts for the checks, made by the command line when a check first needs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_checks.needs import need
from gpu_checks.outcome import FailedError

ROOT = Path(__file__).resolve().parents[2]
IN_REPOSITORY = ROOT / "tests" / "edge" / "data"  # `edge` in most precisions: nothing to make
EDGE = IN_REPOSITORY / "edge.onnx"
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
        command("quantize", source, "--precision", precision, "-o", path)
    return path


def validated(artifact: Path, provider: str) -> dict[str, Any]:
    """Run the gate on a provider and return its figures.

    Raises:
        FailedError: The gate did not pass, or another provider ran the artifact.
    """
    return gate_numbers(command("validate", artifact, "--provider", provider), provider)


def gate_numbers(answer: dict[str, Any], provider: str) -> dict[str, Any]:
    """Return the gate's figures from the JSON of `vit-export validate`."""
    stage = answer["hop"]
    if stage["passed"] is not True:
        raise FailedError(f"the gate did not pass: {stage['reason']}")
    if stage["provider"] != provider:
        raise FailedError(f"{stage['provider']!r} ran the artifact, expected {provider!r}")
    names = ("max_abs", "tolerance", "cosine", "batches")
    return {name: stage[name] for name in names if stage.get(name) is not None}
