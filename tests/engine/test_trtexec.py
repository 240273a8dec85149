"""The `trtexec` command, by the options of each release."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.artifact.manifest import TensorSpec
from vit_export.engine.settings import EngineSettings, profiles_of
from vit_export.engine.trtexec import trtexec_command
from vit_export.errors import UsageError

IMAGES = TensorSpec("pixel_values", "float32", ("batch_size", 3, 224, 224))


def command(
    version: str, batches: tuple[BatchRange, ...] = (BatchRange(1, 8, 32),), **fields: object
) -> str:
    """Return the command for b16.engine of b16.onnx."""
    attention = int(fields.pop("attention_nodes", 0))  # type: ignore[call-overload]
    settings = EngineSettings(**fields)  # type: ignore[arg-type]
    profiles = profiles_of([IMAGES], batches)
    source, engine = Path("b16.onnx"), Path("b16.engine")
    return trtexec_command(
        source, engine, settings, profiles, version=version, attention_nodes=attention
    )


def test_tensorrt_10_needs_an_option_for_the_types_of_the_graph_and_11_does_not() -> None:
    """Neither gets --fp16."""
    assert "--stronglyTyped" in command("10.16.1.11").split()
    assert "--stronglyTyped" not in command("11.4.0.106")
    assert "--fp16" not in command("10.3") + command("11")


def test_one_profile_is_given_by_its_shapes() -> None:
    assert command("11.4").split()[3:7] == [
        "--noTF32",
        "--minShapes=pixel_values:1x3x224x224",
        "--optShapes=pixel_values:8x3x224x224",
        "--maxShapes=pixel_values:32x3x224x224",
    ]


def test_several_profiles_are_numbered() -> None:
    """Without --profile trtexec refuses more than one."""
    words = command("10.12", (BatchRange(1, 1, 1), BatchRange(2, 4, 8))).split()
    assert [word for word in words if word.startswith("--profile=")] == [
        "--profile=0",
        "--profile=1",
    ]
    assert words.index("--profile=1") > words.index("--maxShapes=pixel_values:1x3x224x224")


def test_every_setting_has_its_option() -> None:
    words = command(
        "11.4", precision="fp32", workspace_mib=2048, timing_cache=Path("t.cache"), builder_level=5,
        version_compatible=True, hardware_compatibility="ampere-plus", weight_streaming=True,
        refit=True, strip=True, attention_nodes=12, device=1,
    )  # fmt: skip
    for word in ("--memPoolSize=workspace:2048", "--timingCacheFile=t.cache",
                 "--builderOptimizationLevel=5", "--versionCompatible",
                 "--hardwareCompatibilityLevel=ampere+", "--allowWeightStreaming", "--refit",
                 "--stripWeights", "--decomposableAttentions=*", "--device=1"):  # fmt: skip
        assert word in words
    assert "--decomposableAttentions" not in command("11.4", attention_nodes=12)
    assert "--decomposableAttentions=*" in command("11.4", precision="int8", attention_nodes=12)


@pytest.mark.parametrize("version", ["", "9.3", "10.0", "12.0", "new"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(UsageError, match=r"TensorRT 10.3 to 11"):
        command(version)


def test_what_a_version_cannot_build_is_refused() -> None:
    """The Attention node needs 10.14; another program builds for TensorRT-RTX."""
    with pytest.raises(UsageError, match="--attention decomposed"):
        command("10.12", attention_nodes=12)
    with pytest.raises(UsageError, match=r"--compute-capability 12\.0: trtexec builds for"):
        command("11.4", compute_capabilities=("12.0",))
    with pytest.raises(UsageError, match="--backend tensorrt"):
        command("11.4", backend="tensorrt-rtx")
