"""The `trtexec` line that builds the same engine, for TensorRT 10 and 11.

Options by NVIDIA/TensorRT samples/common/sampleOptions.cpp, releases 10.3 to 11.1.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version

from vit_export.artifact.engine_sidecar import Profile
from vit_export.engine.options import HARDWARE_COMPATIBILITY, BuildOptions
from vit_export.errors import UsageError

OLDEST, NEWEST = (10, 3), (11, 99)
FLOAT_ATTENTION = ("fp32", "int8")  # precisions whose Attention nodes are in float32
DECOMPOSABLE_SINCE = (10, 14)  # --decomposableAttentions, as the Attention node itself


def trtexec_line(
    source: Path,
    engine: Path,
    options: BuildOptions,
    profiles: Sequence[Profile],
    *,
    version: str,
    attention_nodes: int = 0,
) -> str:
    """Say how `trtexec` builds the same engine.

    Args:
        source: An .onnx file in the precision that is asked for: types stand in the graph.
        engine: File that it is to write.
        options: What is asked for.
        profiles: Optimization profiles.
        version: Of TensorRT, e.g. `"10.16"` or `"11"`.
        attention_nodes: Number of Attention nodes in the graph.

    Raises:
        UsageError: trtexec of that version cannot build it.
    """
    numbers = _release(version)
    if not numbers or not OLDEST[: len(numbers)] <= numbers[:2] <= NEWEST:
        raise UsageError(
            f"--print-trtexec {version}: known are TensorRT 10.3 to 11, e.g. 10.16 or 11.4"
        )
    if options.backend != "tensorrt":
        raise UsageError("--print-trtexec speaks of TensorRT: give it with --backend tensorrt")
    if options.compute_capabilities:
        raise UsageError(
            f"--compute-capability {options.compute_capabilities[0]}: trtexec builds for the GPU "
            "that it runs on; leave it out, or give --hardware-compatibility"
        )
    if attention_nodes and len(numbers) > 1 and numbers < DECOMPOSABLE_SINCE:
        raise UsageError(
            f"--print-trtexec {version}: TensorRT knows the Attention node from 10.14 on; "
            "export with --attention decomposed"
        )
    words = ["trtexec", f"--onnx={source}", f"--saveEngine={engine}"]
    if numbers[0] < 11:
        words.append("--stronglyTyped")  # TensorRT 11 is always strongly typed, and warns of it
    words.append("--noTF32")
    for index, profile in enumerate(profiles):
        if len(profiles) > 1:
            words.append(f"--profile={index}")
        for end in ("min", "opt", "max"):
            shapes = (
                f"{name}:{'x'.join(map(str, getattr(ranges, end)))}"
                for name, ranges in profile.items()
            )
            words.append(f"--{end}Shapes={','.join(shapes)}")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if options.builder_level is not None:
        words.append(f"--builderOptimizationLevel={options.builder_level}")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware_compatibility != "none":
        _, mode = HARDWARE_COMPATIBILITY[options.hardware_compatibility]
        words.append(f"--hardwareCompatibilityLevel={mode}")
    if options.weight_streaming:
        words.append("--allowWeightStreaming")
    if options.refit:
        words.append("--refit")
    if options.strip:
        words.append("--stripWeights")
    if options.precision in FLOAT_ATTENTION and attention_nodes:
        words.append("--decomposableAttentions=*")
    words += ["--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(words)


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version; nothing for a text that is none."""
    try:
        return Version(version).release
    except InvalidVersion:
        return ()
