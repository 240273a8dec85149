"""Artifacts to look at, made by the command line when a check first needs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_checks.outcome import FailedError, NotRunError, need

ROOT = Path(__file__).resolve().parents[2]
EDGE = ROOT / "tests" / "edge" / "data" / "edge.onnx"  # needs no torch to be made
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
        NotRunError: There is no torch to make it with.
        FailedError: The export did not pass its own gate.
    """
    if variant == "edge":
        if precision != "fp32":
            raise NotRunError("the artifact that lies in the repository is fp32")
        return EDGE
    path = folder / f"{variant}.{precision}.onnx"
    if not path.exists():
        need(*EXPORT)
        command("onnx", "--variant", variant, "--precision", precision, "-o", path)
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
