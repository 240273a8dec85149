"""An engine has the precision of its settings, or there is an error."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cuda import FakeCuda

from vit_export.artifact.engine_sidecar import Range
from vit_export.engine.proof import (
    check_network,
    inspect_engine,
    inspector_warning,
    plan_size,
    shown_types,
)
from vit_export.engine.settings import EngineSettings
from vit_export.errors import EngineError
from vit_export.runtime.tensorrt.backend import load_backend

B16 = (173_000_000, 346_000_000)  # bytes of the weights in fp16, and in fp32


def test_a_network_may_have_the_fp32_products_that_the_conversion_left() -> None:
    check_network({"HALF": 73}, "fp16", wide_allowed=0, narrow_at_least=50)
    check_network({"HALF": 72, "FLOAT": 1}, "fp16", wide_allowed=1, narrow_at_least=49)
    check_network({"INT8": 48, "FLOAT": 25}, "int8", wide_allowed=0, narrow_at_least=48)
    check_network({"FLOAT": 73}, "fp32", wide_allowed=0, narrow_at_least=1)


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        ({"FLOAT": 73}, "fp16"),
        ({"FLOAT": 73}, "bf16"),
        ({"FLOAT": 73}, "int8"),
        ({"HALF": 72, "FLOAT": 1}, "fp16"),
        ({"HALF": 49}, "fp16"),
        ({"HALF": 73}, "bf16"),
        ({"HALF": 73}, "fp32"),
        ({}, "fp16"),
        ({}, "fp32"),
    ],
)
def test_a_network_of_another_precision_is_refused(types: dict[str, int], precision: str) -> None:
    with pytest.raises(EngineError, match=f"--precision {precision}, but"):
        check_network(types, precision, wide_allowed=0, narrow_at_least=50)


def size_of(plan_bytes: int, weights: tuple[int, int], **fields: object) -> tuple[str, bool]:
    """What the size of a plan of b16 shows, with 73 products in one profile."""
    settings = EngineSettings(**fields)  # type: ignore[arg-type]
    return plan_size(plan_bytes, weights, settings, kernels=73)


def test_a_plan_with_fp32_weights_is_too_large_for_fp16() -> None:
    """What TensorRT 11 makes of a dropped flag: 111.75 MB instead of 59.82 (rf-detr #1453)."""
    note, fits = size_of(351_000_000, B16)
    assert "may be an fp32 engine" in note
    assert not fits
    note, fits = size_of(178_000_000, B16)
    assert "less than the weights alone in fp32" in note
    assert fits


def test_a_plan_with_fp16_weights_is_too_small_for_fp32() -> None:
    wide = (346_000_000, 346_000_000)
    note, fits = size_of(178_000_000, wide, precision="fp32")
    assert "smaller than its weights" in note
    assert not fits
    note, fits = size_of(351_000_000, wide, precision="fp32")
    assert note == "351000000 bytes, at least its weights in fp32 (346000000)"
    assert fits


def test_the_note_says_where_the_size_shows_nothing() -> None:
    """The kernels of a small model outweigh its weights; a stripped plan has no weights."""
    small = (1_350_000, 2_700_000)
    assert "mostly code" in size_of(4_900_000, small)[0]
    assert "shows nothing" in size_of(1, B16, strip=True)[0]


def test_the_lean_runtime_of_a_version_compatible_plan_does_not_count_as_weights() -> None:
    """The lower limit of fp32 holds all the same."""
    note, fits = size_of(351_000_000, B16, version_compatible=True)
    assert "shows nothing" in note
    assert fits
    assert not size_of(1_000_000, B16, version_compatible=True, precision="fp32")[1]


# What TensorRT's inspector returned on GPUs, as NVIDIA publishes it:
# docs: https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/engine-tools.html
# trex: tools/experimental/trt-engine-explorer of https://github.com/NVIDIA/TensorRT
INT8_FORMAT = "Thirty-two wide channel vectorized row major Int8 format."  # docs
INT8_TACTIC = (  # docs
    "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_"
    "vect_c_32_tilesize256x128x64_stage4_warpsize4x2x1_g1_tensor16x8x32_simple_t1r1s1_epifadd"
)
FP16_TACTIC = (  # trex, examples/pytorch/resnet/A100/fp16/resnet.onnx.engine.graph.json
    "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize256x64x32_stage3_"
    "warpsize4x1x1_g1_tensor16x8x16_t1r3s3_aACCESS"
)
FORMATS = {  # trex, trex/activations.py
    "fp16": ("Row major linear FP16 format", "Channel major FP16 format where channel % 8 == 0",
             "Half"),
    "bf16": ("Row major linear BFloat16 format", "BFloat16"),
    "int8": ("Row major Int8 format", "Channel major INT8 format where channel % 16 == 0", "Int8"),
    "fp32": ("Row major linear FP32", "Float"),
}  # fmt: skip
# Instead of a format, where the shapes are dynamic and the inspector has no context: in dumps that
# users of TensorRT 8.5 to 10 published; the documentation says that no format is shown then.
NO_FORMAT = "N/A due to dynamic shapes"


def layer(text: str, **parts: object) -> dict[str, object]:
    """A layer in the form of the documentation, with one input and output of a format."""
    tensors = [{"Name": "x", "Location": "Device", "Dimensions": [-1, 64], "Format/Datatype": text}]
    return {"Name": "n", "LayerType": "CaskConvolution", "Inputs": tensors, "Outputs": tensors,
            "TacticValue": "0x11bde0e1d9f2f35d", **parts}  # fmt: skip


def shown(*layers: object) -> dict[str, dict[str, int]]:
    """What an inspector shows that describes these layers."""
    return shown_types(json.dumps({"Layers": layers, "Bindings": ["x"]}))


def test_the_types_that_the_inspector_shows_are_counted() -> None:
    int8 = layer(INT8_FORMAT, Weights={"Type": "Int8", "Count": 131072}, TacticName=INT8_TACTIC)
    assert shown(int8, int8, layer("Float")) == {
        "inputs": {INT8_FORMAT: 2, "Float": 1},
        "outputs": {INT8_FORMAT: 2, "Float": 1},
        "weights": {"Int8": 2},
        "tactics": {INT8_TACTIC: 2},
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_format_confirms_its_own_precision_only(precision: str) -> None:
    for kind, formats in FORMATS.items():
        for text in formats:
            warning = inspector_warning(shown(layer(text)), precision)
            assert (warning == "") == (kind == precision), text
            if warning:
                assert warning == (
                    f"TensorRT's inspector shows no {precision} in the engine: inputs 1 {text}; "
                    f"outputs 1 {text}"
                )
            assert inspector_warning(shown(layer(text)), "fp32") == ""


@pytest.mark.parametrize(
    ("precision", "parts"),
    [
        ("fp16", {"Weights": {"Type": "Half", "Count": 36864}}),
        ("int8", {"Weights": {"Type": "Int8", "Count": 131072}}),
        ("fp16", {"TacticName": FP16_TACTIC}),
        ("int8", {"TacticName": INT8_TACTIC}),
    ],
)
def test_weights_and_tactics_show_the_precision_where_the_formats_are_not_shown(
    precision: str, parts: dict[str, object]
) -> None:
    """As in an engine of dynamic shapes."""
    found = shown(layer(NO_FORMAT, **parts))
    assert len(found) == 1
    for wanted in ("fp16", "bf16", "int8"):
        assert (inspector_warning(found, wanted) == "") == (wanted == precision)


@pytest.mark.parametrize(
    "information",
    [
        json.dumps({"Layers": [layer(NO_FORMAT)]}),
        json.dumps({"Layers": ["node_of_gpu_0/res4_0_branch2a_1"]}),  # docs: names only
        json.dumps({"Layers": [{"Inputs": "x", "Weights": 1, "Outputs": [2]}, 3]}),
        json.dumps(["Layers"]),
        "",
        "{",
    ],
)
def test_an_inspector_that_shows_no_types_fails_nothing(information: str) -> None:
    """An unknown form of its JSON neither."""
    assert shown_types(information) == {}
    assert "no types at all" in inspector_warning({}, "fp16")


class Engine:
    """An engine whose inspector shows formats only with a context of known shapes.

    It is a fake, since TensorRT loads no engine without a GPU. It behaves as NvInferRuntime.h
    describes; the names of its methods are those of the real bindings (test_tensorrt_api.py).
    """

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profile: int | None = None
        self.execution_context: Any = None

    def create_engine_inspector(self) -> Any:
        return self

    def create_execution_context(self) -> Any:
        return SimpleNamespace(
            set_optimization_profile_async=lambda index, stream: setattr(self, "profile", index),
            set_input_shape=lambda name, shape: self.shapes.update({name: shape}),
        )

    def get_engine_information(self, form: object) -> str:
        known = self.execution_context and self.profile == 0 and self.shapes
        return json.dumps({"Layers": [layer("Half" if known else NO_FORMAT)], "form": str(form)})


@pytest.mark.parametrize("context", [True, False])
def test_the_engine_is_inspected_at_the_best_shapes_of_its_first_profile(
    monkeypatch: pytest.MonkeyPatch, context: bool
) -> None:
    """Without memory for a context the types are not shown, and nothing fails."""
    rtx, engine = load_backend("tensorrt-rtx"), Engine()
    monkeypatch.setattr("cuda.core.Device", FakeCuda().device)
    if not context:
        monkeypatch.setattr(engine, "create_execution_context", lambda: None)
    profile = {"x": Range((1, 3, 32, 32), (8, 3, 32, 32), (32, 3, 32, 32))}
    information = inspect_engine(rtx, engine, [profile, profile])
    assert "JSON" in json.loads(information)["form"]
    assert inspector_warning(shown_types(information), "fp16") == (
        "" if context else "TensorRT's inspector shows no fp16 in the engine: no types at all"
    )
    assert engine.shapes == ({"x": (8, 3, 32, 32)} if context else {})
