"""Settings of an engine, and its optimization profiles."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.artifact.manifest import TensorSpec
from vit_export.cli.main import main
from vit_export.engine.settings import EngineSettings, parse_range, profiles_of, range_text
from vit_export.errors import UsageError
from vit_export.pipeline import engine

IMAGES = TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32))


@pytest.mark.parametrize(
    ("text", "sizes"), [("1:8:32", (1, 8, 32)), ("4", (4, 4, 4)), (" 2 : 2 : 2 ", (2, 2, 2))]
)
def test_a_range_is_three_batch_sizes_or_one(text: str, sizes: tuple[int, int, int]) -> None:
    assert parse_range(text) == BatchRange(*sizes)
    assert parse_range(range_text(BatchRange(*sizes))) == sizes


@pytest.mark.parametrize("text", [
    "", "a", "1:2", "0:1:2", "8:4:16", "1:8:4", "1:2:3:4", "-1", "1:8:2147483648", "9" * 30,
])  # fmt: skip
def test_a_range_that_does_not_rise_or_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--batch .*: expected .*MIN.*OPT.*MAX.*1:8:32"):
        EngineSettings(batches=(parse_range(text),))


def test_there_is_one_profile_per_range() -> None:
    (first, second) = profiles_of([IMAGES], [BatchRange(1, 1, 1), BatchRange(2, 4, 8)])
    assert first["pixel_values"].max == (1, 3, 32, 32)
    assert second["pixel_values"].opt == (4, 3, 32, 32)
    (default,) = profiles_of([IMAGES], [])
    assert default["pixel_values"].max == (32, 3, 32, 32)


def test_a_graph_of_fixed_batch_size_has_no_profile_and_accepts_no_other_size() -> None:
    fixed = TensorSpec("pixel_values", "float32", (4, 3, 32, 32))
    assert profiles_of([fixed], []) == ()
    assert profiles_of([fixed], [BatchRange(4, 4, 4)]) == ()
    with pytest.raises(UsageError, match="has a fixed batch size"):
        profiles_of([fixed], [BatchRange(1, 4, 8)])


def test_a_dynamic_image_size_is_refused() -> None:
    """TensorRT has no antialiased Resize."""
    spec = TensorSpec("pixel_values", "float32", ("batch_size", 3, "height", "width"))
    with pytest.raises(UsageError, match=r"dynamic height and width.*\n.*--img-size"):
        profiles_of([spec], [])


def test_the_gate_runs_min_opt_and_max_of_every_profile_and_1_2_3(make_sidecar) -> None:
    profiles = profiles_of([IMAGES], [BatchRange(1, 8, 32)])
    assert make_sidecar(profiles=profiles).gate_batches == [1, 2, 3, 8, 32]
    narrow = profiles_of([IMAGES], [BatchRange(4, 4, 6), BatchRange(16, 16, 16)])
    assert make_sidecar(profiles=narrow).gate_batches == [4, 6, 16]
    inputs = (TensorSpec("pixel_values", "float32", (5, 3, 32, 32)),)
    fixed = make_sidecar().manifest.replace(inputs=inputs)
    assert make_sidecar(profiles=(), manifest=fixed).gate_batches == [5]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"backend": "tensort"}, "did you mean 'tensorrt'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"hardware_compatibility": "ampere"}, "did you mean 'ampere-plus'"),
        ({"builder_level": 6}, "must be 0 to 5"),
        ({"workspace_mib": 0}, "must be 1 to"),
        ({"workspace_mib": 99999999999999}, "to 16777216"),
        (
            {"backend": "tensorrt-rtx", "builder_level": 3},
            "--builder-level: .* ignores it",
        ),
        (
            {"backend": "tensorrt-rtx", "timing_cache": Path("x")},
            "--timing-cache: .* ignores it",
        ),
        (
            {"backend": "tensorrt-rtx", "version_compatible": True},
            "--version-compatible: .* ignores",
        ),
        (
            {"backend": "tensorrt-rtx", "hardware_compatibility": "ampere-plus"},
            "--compute-capability once for each",
        ),
        *(
            ({"compute_capabilities": values}, r"expected a tuple of strings\nhint: .*\(\"8.9\",\)")
            for values in ("8.9", [8.9], (8.9,), 8.9)
        ),
        *(
            ({"compute_capabilities": (text,)}, f"hint: write {spelled}; give the option once for")
            for text, spelled in (
                *(("89", "8.9"), ("sm_89", "8.9"), ("8.9,8.6", "8.9"), ("8.6 ", "8.6")),
                *(("SM120", "12.0"), ("ada", "8.9")),
            )
        ),
    ],
)
def test_unknown_and_ignored_settings_are_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        EngineSettings(**fields)


def test_the_command_reads_the_arguments_of_a_rebuild_and_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPU and timing cache belong to the machine of the build."""
    settings = EngineSettings(
        device=1,
        precision="bf16",
        batches=(BatchRange(1, 1, 1), BatchRange(2, 8, 16)),
        compute_capabilities=("8.9",),
        timing_cache=Path("cache"),
        workspace_mib=512,
        builder_level=4,
        version_compatible=True,
        hardware_compatibility="ampere-plus",
        weight_streaming=True,
        refit=True,
        strip=True,
    )
    received = []

    def build_engine(source: str, output: str, *, settings: EngineSettings, **_: Any) -> None:
        received.append(settings)
        raise UsageError("enough")

    monkeypatch.setattr(engine, "build_engine", build_engine)
    elsewhere = dataclasses.replace(
        settings, device=None, compute_capabilities=(), timing_cache=None
    )
    for device in (None, 3):  # as a rebuild names the GPU that loads the engine
        words = [] if device is None else ["--device", str(device)]
        CliRunner().invoke(main, ["engine", "x.onnx", *settings.arguments(), *words])
        assert received.pop() == dataclasses.replace(elsewhere, device=device)
