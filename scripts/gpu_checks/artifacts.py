"""Artifacts to look at, made by the command line when a check first needs them."""

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
    """The JSON object of a `vit-export` command.

    Raises:
        FailedError: It ended with another status than 0; with its error.
    """
    line = [sys.executable, "-m", "vit_export", *map(str, arguments), "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    answer: dict[str, Any] = json.loads(last) if last.startswith("{") else {}
    if done.returncode:
        said = answer.get("error") or (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise FailedError(f"vit-export {' '.join(map(str, arguments))}: {said}")
    return answer


def exported(folder: Path, variant: str, precision: str = "fp32") -> Path:
    """An artifact of a variant with random weights of seed 0; made once per folder.

    Raises:
        NotRunError: What makes it is not installed.
        FailedError: It did not pass its own gate.
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
    """The gate on a provider, in numbers.

    Raises:
        FailedError: It did not pass, or something else ran the artifact.
    """
    return gate_numbers(command("validate", artifact, "--provider", provider), provider)


def gate_numbers(answer: dict[str, Any], provider: str) -> dict[str, Any]:
    """What the gate measured, from the JSON of `vit-export validate`."""
    hop = answer["hop"]
    if hop["passed"] is not True:
        raise FailedError(f"the gate did not pass: {hop['reason']}")
    if hop["provider"] != provider:
        raise FailedError(f"ran on {hop['provider']!r}, and {provider!r} was asked for")
    names = ("max_abs", "tolerance", "cosine", "batches")
    return {name: hop[name] for name in names if hop.get(name) is not None}
