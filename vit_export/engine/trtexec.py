"""The `trtexec` command that builds the same engine, for TensorRT 10 and 11.

Options: NVIDIA/TensorRT samples/common/sampleOptions.cpp, releases 10.3 to 11.1.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version

from vit_export.artifact.engine_sidecar import Profile
from vit_export.engine.settings import HARDWARE_COMPATIBILITY, SWITCHES, EngineSettings
from vit_export.errors import UsageError

OLDEST, NEWEST = (10, 3), (11, 99)
FLOAT_ATTENTION = ("fp32", "int8")  # precisions whose Attention nodes are in float32
DECOMPOSABLE_SINCE = (10, 14)  # --decomposableAttentions, as the Attention node itself


def trtexec_command(
    source: Path,
    engine: Path,
    settings: EngineSettings,
    profiles: Sequence[Profile],
    *,
    version: str,
    attention_nodes: int = 0,
) -> str:
    """Return the `trtexec` command of a version, e.g. `"10.16"`, that builds an engine.

    The source has the precision of the settings, and a number of Attention nodes.
    """
    try:
        numbers = Version(version).release
    except InvalidVersion:
        numbers = ()
    if not numbers or not OLDEST[: len(numbers)] <= numbers[:2] <= NEWEST:
        raise UsageError(
            f"--print-trtexec {version}: expected TensorRT 10.3 to 11, e.g. 10.16 or 11.4"
        )
    if settings.backend != "tensorrt":
        raise UsageError("--print-trtexec needs --backend tensorrt")
    if settings.compute_capabilities:
        raise UsageError(
            f"--compute-capability {settings.compute_capabilities[0]}: trtexec builds for the GPU "
            "that it runs on",
            hint="leave it out, or use --hardware-compatibility",
        )
    if attention_nodes and len(numbers) > 1 and numbers < DECOMPOSABLE_SINCE:
        raise UsageError(
            f"--print-trtexec {version}: the graph has Attention nodes, which TensorRT supports "
            "from 10.14",
            hint="export with --attention decomposed",
        )
    words = ["trtexec", f"--onnx={source}", f"--saveEngine={engine}"]
    if numbers[0] < 11:
        words.append("--stronglyTyped")  # TensorRT 11 always is, and warns of the option
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
    _, level = HARDWARE_COMPATIBILITY[settings.hardware_compatibility]
    options = {
        "--device=": settings.device,
        "--memPoolSize=workspace:": settings.workspace_mib,
        "--timingCacheFile=": settings.timing_cache,
        "--builderOptimizationLevel=": settings.builder_level,
        "--hardwareCompatibilityLevel=": None if level == "none" else level,
    }
    words += [f"{option}{value}" for option, value in options.items() if value is not None]
    words += [option for field, (_, option) in SWITCHES.items() if getattr(settings, field)]
    if settings.precision in FLOAT_ATTENTION and attention_nodes:
        words.append("--decomposableAttentions=*")
    words += ["--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(words)
