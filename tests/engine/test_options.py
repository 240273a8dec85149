"""What an engine may be asked to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vit_export.artifact.engine_sidecar import BatchRange, gate_batches
from vit_export.artifact.manifest import TensorSpec
from vit_export.cli.commands.engine import engine
from vit_export.cli.main import main
from vit_export.engine.options import BuildOptions
from vit_export.engine.profiles import parse, profiles_of, show
from vit_export.errors import UsageError

IMAGES = TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32))


@pytest.mark.parametrize(
    ("text", "ends"), [("1:8:32", (1, 8, 32)), ("4", (4, 4, 4)), (" 2 : 2 : 2 ", (2, 2, 2))]
)
def test_a_profile_is_read_as_it_is_typed(text: str, ends: tuple[int, int, int]) -> None:
    """MIN:OPT:MAX, or one size."""
    assert parse(text) == BatchRange(*ends)
    assert parse(show(BatchRange(*ends))) == ends


@pytest.mark.parametrize("text", [
    "", "a", "1:2", "0:1:2", "8:4:16", "1:8:4", "1:2:3:4", "-1", "1:8:2147483648", "9" * 30,
])  # fmt: skip
def test_a_profile_that_does_not_rise_is_refused(text: str) -> None:
    """With an example of one that does; nor one that TensorRT cannot count."""
    with pytest.raises(UsageError, match=r"--batch .*1:8:32"):
        BuildOptions(batches=(parse(text),))


def test_profiles_name_every_shape_of_a_dynamic_input() -> None:
    """One per range."""
    (first, second) = profiles_of([IMAGES], [BatchRange(1, 1, 1), BatchRange(2, 4, 8)])
    assert first["pixel_values"].max == (1, 3, 32, 32)
    assert second["pixel_values"].opt == (4, 3, 32, 32)
    (default,) = profiles_of([IMAGES], [])
    assert default["pixel_values"].max == (32, 3, 32, 32)


def test_a_graph_of_fixed_batch_has_no_profile_and_takes_no_other_batch() -> None:
    """Its own size may be repeated."""
    fixed = TensorSpec("pixel_values", "float32", (4, 3, 32, 32))
    assert profiles_of([fixed], []) == ()
    assert profiles_of([fixed], [BatchRange(4, 4, 4)]) == ()
    with pytest.raises(UsageError, match="fixes its batch size"):
        profiles_of([fixed], [BatchRange(1, 4, 8)])


def test_a_dynamic_image_size_is_refused_with_the_way_out() -> None:
    """TensorRT has no antialiased Resize."""
    spec = TensorSpec("pixel_values", "float32", ("batch_size", 3, "height", "width"))
    with pytest.raises(UsageError, match=r"dynamic height and width.*--img-size"):
        profiles_of([spec], [])


def test_the_gate_looks_at_both_ends_of_every_profile_and_at_the_best_size() -> None:
    """And at 1, 2, 3, where they are served."""
    profiles = profiles_of([IMAGES], [BatchRange(1, 8, 32)])
    assert gate_batches(profiles) == (1, 2, 3, 8, 32)
    narrow = profiles_of([IMAGES], [BatchRange(4, 4, 6), BatchRange(16, 16, 16)])
    assert gate_batches(narrow) == (4, 6, 16)
    assert gate_batches((), fixed=5) == (5,)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"backend": "tensort"}, "did you mean 'tensorrt'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"hardware_compatibility": "ampere"}, "did you mean 'ampere-plus'"),
        ({"builder_level": 6}, "must be 0 to 5"),
        ({"workspace_mib": 0}, "at least 1"),
        ({"workspace_mib": 99999999999999}, "at most 16777216"),
        ({"backend": "tensorrt-rtx", "builder_level": 3}, "knows no --builder-level"),
        ({"backend": "tensorrt-rtx", "timing_cache": Path("x")}, "knows no --timing-cache"),
        ({"backend": "tensorrt-rtx", "version_compatible": True}, "knows no --version-compatible"),
        (
            {"backend": "tensorrt-rtx", "hardware_compatibility": "ampere-plus"},
            "give --compute-capability once for each",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(fields: dict[str, Any], complaint: str) -> None:
    """TensorRT-RTX would take some of these and do nothing."""
    with pytest.raises(UsageError, match=complaint):
        BuildOptions(**fields)


def test_the_arguments_of_a_rebuild_ask_for_the_same() -> None:
    """Read back by the command's own parser; GPU and timing cache are the machine's affair."""
    asked = BuildOptions(
        backend="tensorrt",
        precision="fp16",
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
    read = engine.make_context("engine", ["x.onnx", *asked.arguments()], parent=None).params
    assert read["batches"] == ("1:1:1", "2:8:16")
    for name in ("backend", "precision", "workspace_mib", "builder_level", "version_compatible",
                 "hardware_compatibility", "weight_streaming", "refit", "strip"):  # fmt: skip
        assert read[name] == getattr(asked, name), name
    assert read["compute_capabilities"] == ()
    assert read["timing_cache"] is None
    assert "engine" in main.commands
