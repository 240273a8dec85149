"""The gate refuses a damaged artifact, and passes a good one whichever tool saved it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import pytest
from onnx import numpy_helper

from vit_export.artifact.golden import Golden
from vit_export.errors import ArtifactError, GateError
from vit_export.gate.validate import Comparison, _plan, compare
from vit_export.pipeline.export import ExportResult
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime.onnxruntime.runner import OrtRunner

Change = Callable[[onnx.ModelProto], None]


def compare_changed(source: ExportResult, path: Path, change: Change) -> Comparison:
    """Apply a change to a copy of an artifact, saved by onnx, and run the gate on it."""
    model = onnx.load(source.path)
    change(model)
    onnx.save(model, path)
    return compare(OrtRunner(path, provider="cpu"), Golden.read(source.golden))


@pytest.fixture
def gate(tiny_export: ExportResult, tmp_path: Path) -> Callable[[Change], Comparison]:
    """Runs the gate on a changed copy of the tiny artifact."""
    return lambda change: compare_changed(tiny_export, tmp_path / "changed.onnx", change)


@pytest.fixture
def two_outputs(exported: Callable[..., ExportResult]) -> ExportResult:
    """The tiny model with a second output."""
    return exported(settings=ExportSettings(outputs=("logits", "tokens")))


@pytest.fixture
def gate_of_two(two_outputs: ExportResult, tmp_path: Path) -> Callable[[Change], Comparison]:
    """Runs the gate on a changed copy of the artifact with two outputs."""
    return lambda change: compare_changed(two_outputs, tmp_path / "changed.onnx", change)


def edit(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of an initializer."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def bypass(model: onnx.ModelProto, output: str) -> None:
    """Remove a node; its first input replaces its output."""
    node = next(n for n in model.graph.node if n.output[0] == output)
    model.graph.node.remove(node)
    for other in model.graph.node:
        for i, name in enumerate(other.input):
            if name == output:
                other.input[i] = node.input[0]


def scale_logits(model: onnx.ModelProto, factor: float) -> None:
    """Multiply the logits by a factor."""
    edit(model, "head.weight", lambda values: values * np.float32(factor))
    edit(model, "head.bias", lambda values: values * np.float32(factor))


def test_an_untouched_file_saved_again_by_another_tool_passes(gate):
    comparison = gate(lambda model: None)
    assert comparison.passed, comparison.stage.reason
    assert comparison.stage.batches == (1, 2, 3)
    assert {m.output for m in comparison.stage.measurements} == {"logits", "features"}


def test_a_file_simplified_again_by_another_tool_passes(gate):
    def again(model: onnx.ModelProto) -> None:
        simplified, _ = onnxsim.simplify(model)
        model.CopyFrom(simplified)

    assert gate(again).passed


@pytest.mark.parametrize(
    "weight",
    ["patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "blocks.2.mlp.fc2.weight",
     "head.weight"],
)  # fmt: skip
def test_a_weight_matrix_off_by_one_percent_is_refused(gate, weight):
    comparison = gate(lambda model: edit(model, weight, lambda values: values * np.float32(1.01)))
    assert not comparison.passed
    with pytest.raises(GateError, match="allowed"):
        comparison.raise_for_failure()


@pytest.mark.parametrize(
    "node", ["blocks.0.attn.qkv/Add", "blocks.1.mlp.fc1/Add", "blocks.2.norm1"]
)
def test_a_dropped_bias_or_layernorm_is_refused(gate, tiny_export, node):
    names = {o for n in onnx.load(tiny_export.path).graph.node for o in n.output}
    full = next(name for name in sorted(names) if name.startswith(node))
    assert not gate(lambda model: bypass(model, full)).passed


def test_the_first_block_that_diverges_is_named(gate):
    comparison = gate(
        lambda model: edit(model, "blocks.1.mlp.fc1.weight", lambda v: v * np.float32(1.5))
    )
    assert [block.accepted for block in comparison.blocks] == [True, False, False]
    assert "first tensor outside its tolerance: blocks.1" in comparison.stage.reason


def test_damage_behind_the_last_block_is_located_there(gate):
    comparison = gate(lambda model: edit(model, "head.bias", lambda v: v + np.float32(0.1)))
    assert "behind the last" in comparison.stage.reason


def test_nan_in_a_weight_is_refused_and_located(gate):
    def poison(values: np.ndarray) -> np.ndarray:
        values.flat[0] = np.nan
        return values

    comparison = gate(lambda model: edit(model, "blocks.2.mlp.fc2.weight", poison))
    assert not comparison.passed
    assert "NaN" in comparison.stage.reason
    assert "blocks.2" in comparison.stage.reason


def test_a_batch_fixed_to_one_is_refused(gate):
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    comparison = gate(fix)
    assert not comparison.passed
    assert "batch 2" in comparison.stage.reason


def test_a_zero_head_does_not_hide_a_broken_body(tiny_export, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        scale_logits(model, 0.0)
        edit(model, "blocks.0.mlp.fc1.weight", lambda v: v * np.float32(1.2))
        onnx.save(model, tmp_path / "changed.onnx")

    golden = Golden.read(tiny_export.golden)
    zeros = {**golden.outputs, "logits": np.zeros_like(golden.outputs["logits"])}
    change(onnx.load(tiny_export.path))
    comparison = compare(
        OrtRunner(tmp_path / "changed.onnx", provider="cpu"),
        dataclasses.replace(golden, outputs=zeros, e32={**golden.e32, "logits": 0.0}),
    )
    assert not comparison.passed
    assert comparison.stage.max_abs == 0  # the logits are right
    assert "features" in comparison.stage.reason


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_int8_outputs_wrong_by_a_factor_are_refused(tiny_export, tmp_path, precision):
    """Cosine similarity cannot detect them."""

    def compare_scaled(factor: float) -> Comparison:
        path = tmp_path / "scaled.onnx"
        model = onnx.load(tiny_export.path)
        scale_logits(model, factor)
        onnx.save(model, path)
        manifest = tiny_export.manifest.replace(precision=precision)
        golden = Golden.read(tiny_export.golden)
        return compare(OrtRunner(path, provider="cpu"), golden, manifest=manifest)

    assert compare_scaled(1.015).passed
    for factor, shown in ((1.03, "1.0300"), (0.97, "0.9700")):
        comparison = compare_scaled(factor)
        assert not comparison.passed
        assert comparison.stage.cosine > 0.999999
        assert f"logits: its values are {shown} times those" in comparison.stage.reasons[0]
        assert "allowed 0.98 to 1.02" in comparison.stage.reasons[0]
        assert not all(m.passed for m in comparison.stage.measurements)


def test_blocks_that_cannot_be_measured_are_reported_as_such(gate, monkeypatch):
    expose = OrtRunner.expose

    def fail_for_blocks(runner: OrtRunner, names: list[str]) -> OrtRunner:
        if "blocks.0" in names:
            raise ArtifactError("out of memory", hint="buy more")
        return expose(runner, names)

    monkeypatch.setattr(OrtRunner, "expose", fail_for_blocks)
    comparison = gate(lambda model: scale_logits(model, 1.1))
    assert comparison.stage.reasons[-1] == "the blocks could not be measured: out of memory"
    assert comparison.blocks == ()
    assert not any("no tensor" in reason for reason in comparison.stage.reasons)


def test_each_reason_is_kept_apart(gate):
    """A reason may contain any character; the file also holds them as one text."""
    stage = gate(lambda model: scale_logits(model, 1.1)).stage
    assert len(stage.reasons) > 1
    assert stage.reason == "; ".join(stage.reasons)


def test_rows_that_depend_on_their_neighbours_are_refused(gate):
    def mix(model: onnx.ModelProto) -> None:
        last = model.graph.node[-1]
        name = last.output[0]
        last.output[0] = "before"
        share = numpy_helper.from_array(np.float32(1e-3), "share")
        axes = numpy_helper.from_array(np.array([0]), "axes0")
        model.graph.initializer.extend([share, axes])
        model.graph.node.extend([
            onnx.helper.make_node("ReduceMean", ["before", "axes0"], ["mean"]),
            onnx.helper.make_node("Mul", ["mean", "share"], ["part"]),
            onnx.helper.make_node("Sub", ["before", "part"], [name]),
        ])  # fmt: skip

    comparison = gate(mix)
    assert not comparison.passed
    assert "neighbours" in comparison.stage.reason
    assert comparison.stage.row_max_abs > comparison.stage.tolerance


def test_swapped_classes_are_refused(gate):
    comparison = gate(lambda model: edit(model, "head.bias", lambda v: v[::-1].copy()))
    assert not comparison.passed


def test_wrong_normalisation_in_the_manifest_is_refused(tiny_export):
    runner = OrtRunner(tiny_export.path, provider="cpu")
    other = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    preprocess = runner.manifest.preprocess.replace(other)
    assert not compare(runner, Golden.read(tiny_export.golden), preprocess=preprocess).passed


@pytest.mark.parametrize(
    ("shape", "found"), [((4, 48, 48, 3), r"\(4, 3, 48, 48\)"), ((4, 32, 32, 1), "1")]
)
def test_a_golden_file_of_another_model_is_refused(tiny_export, shape, found):
    golden = Golden.read(tiny_export.golden)
    other = dataclasses.replace(golden, images=np.zeros(shape, np.uint8))
    with pytest.raises(ArtifactError, match=rf"golden .* {found}: (it|the golden file) belongs"):
        compare(OrtRunner(tiny_export.path, provider="cpu"), other)


def test_a_missing_features_tensor_is_noted_as_not_measured(gate):
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == "features":
                        names[i] = "renamed"

    comparison = gate(rename)
    assert comparison.passed
    assert any("features" in note for note in comparison.stage.notes)


def test_the_tolerance_is_four_times_the_error_of_torch_float32(tiny_export):
    golden = Golden.read(tiny_export.golden)
    largest = float(np.abs(golden.outputs["logits"]).max())
    expected = max(4 * golden.e32["logits"], 1e-6 * largest)
    assert tiny_export.comparison.stage.tolerance == pytest.approx(expected, rel=1e-12)
    assert 0 < golden.e32["logits"] < 1e-4 * largest


def test_an_output_that_the_manifest_promises_and_the_graph_lacks_is_refused(gate_of_two):
    def remove(model: onnx.ModelProto) -> None:
        model.graph.output.remove(next(o for o in model.graph.output if o.name == "logits"))

    comparison = gate_of_two(remove)
    assert not comparison.passed
    assert "logits: promised by the manifest" in comparison.stage.reason


def test_a_golden_file_with_a_loose_baseline_is_refused(tiny_export):
    golden = Golden.read(tiny_export.golden)
    loose = dataclasses.replace(golden, e32={"logits": 1e9, "features": golden.e32["features"]})
    comparison = compare(OrtRunner(tiny_export.path, provider="cpu"), loose)
    assert not comparison.passed
    assert "lets anything pass" in comparison.stage.reason


def test_a_golden_file_without_features_does_not_pass_a_named_variant(tiny_export):
    golden = Golden.read(tiny_export.golden)
    logits = dataclasses.replace(golden, outputs={"logits": golden.outputs["logits"]})
    comparison = compare(OrtRunner(tiny_export.path, provider="cpu"), logits)
    assert "lacks the features" in comparison.stage.reason


def test_a_block_without_a_baseline_does_not_pass(tiny_export):
    """Where there are no features, the last block is gated in their place."""
    golden = Golden.read(tiny_export.golden)
    golden = dataclasses.replace(
        golden,
        outputs={"logits": golden.outputs["logits"]},
        blocks=dataclasses.replace(golden.blocks, e32=np.zeros(0)),
    )
    comparison = compare(OrtRunner(tiny_export.path, provider="cpu"), golden)
    assert "blocks.2: the golden file gives torch float32 an error of inf" in (
        comparison.stage.reason
    )


def test_blocks_come_before_the_tokens_they_make(two_outputs):
    assert Golden.read(two_outputs.golden).blocks.names == (
        "blocks.0", "blocks.1", "blocks.2", "tokens"
    )  # fmt: skip


@pytest.mark.parametrize("batches", [(1, 2, 3, 5, 16), (4, 6), (2,)])
def test_the_given_batch_sizes_are_run(tiny_export, batches):
    runner = OrtRunner(tiny_export.path, provider="cpu")
    stage = compare(runner, Golden.read(tiny_export.golden), batches=batches).stage
    assert stage.passed, stage.reason
    assert stage.batches == batches


def swap_heads(model: onnx.ModelProto) -> None:
    """Swap the queries of both heads in the second block; keys and values stay."""

    def swapped(columns: np.ndarray) -> np.ndarray:
        q, rest = columns[..., :32], columns[..., 32:]
        return np.concatenate([np.roll(q, 16, axis=-1), rest], axis=-1)

    for name in ("blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.bias"):
        edit(model, name, swapped)


def shift_positions(model: onnx.ModelProto) -> None:
    """Give each patch the position of its left neighbour; the class token keeps its own."""
    (name,) = (t.name for t in model.graph.initializer if list(t.dims) == [1, 17, 32])
    edit(model, name, lambda x: np.concatenate([x[:, :1], np.roll(x[:, 1:], 1, axis=1)], axis=1))


def approximate_gelu(model: onnx.ModelProto) -> None:
    """Compute GELU by tanh instead of erf in the last block."""
    gelu = next(n for n in model.graph.node if n.name == "blocks.2.mlp.act/Gelu")
    del gelu.attribute[:]
    gelu.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))


@pytest.mark.parametrize("damage", [swap_heads, shift_positions, approximate_gelu])
def test_a_small_mistake_of_a_converter_is_refused(gate, damage):
    comparison = gate(damage)
    assert not comparison.passed
    assert {m.output for m in comparison.stage.measurements if not m.passed} == {
        "logits", "features"
    }  # fmt: skip


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_mask_on_one_row_of_the_batch_is_refused(gate, row):
    """Each row of the largest batch is compared with the reference."""

    def mask(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.output[0] == "blocks.1")
        node.output[0] = "unmasked"
        constants = {"zero": 0, "one": 1, "row": row, "shape": np.array([-1, 1, 1])}
        half = numpy_helper.from_array(np.float32(0.5), "half")
        whole = numpy_helper.from_array(np.float32(1), "whole")
        model.graph.initializer.extend([half, whole])
        for name, value in constants.items():
            array = np.asarray(value, np.int64)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        make, at = onnx.helper.make_node, list(model.graph.node).index(node) + 1
        for new in reversed([
            make("Shape", ["pixel_values"], ["sizes"]),
            make("Gather", ["sizes", "zero"], ["batch"]),
            make("Range", ["zero", "batch", "one"], ["rows"]),
            make("Equal", ["rows", "row"], ["chosen"]),
            make("Where", ["chosen", "half", "whole"], ["flat"]),
            make("Reshape", ["flat", "shape"], ["mask"]),
            make("Mul", ["unmasked", "mask"], ["blocks.1"]),
        ]):  # fmt: skip
            model.graph.node.insert(at, new)

    comparison = gate(mask)
    assert not comparison.passed
    passed = {m.batch for m in comparison.stage.measurements if m.passed}
    assert passed == set(range(1, row + 1))


@pytest.mark.parametrize("samples", [4, 8, 9, 20])
@pytest.mark.parametrize("batches", [(1, 2, 3), (2,), (3,), (1, 2, 3, 32), (1, 8), (4, 6)])
def test_every_sample_is_run_one_twice_in_a_batch_and_one_with_other_neighbours(samples, batches):
    plan = list(_plan(samples, batches))
    assert {len(rows) for rows in plan} == set(batches)
    assert {sample for rows in plan for sample in rows} == set(range(samples))
    assert any(len(rows) > 1 and len(set(rows)) == 1 for rows in plan)
    settings = {(sample, tuple(rows)) for rows in plan for sample in rows}
    assert len(settings) > samples


@pytest.mark.parametrize("batches", [(1, 2, 3), (3,), (1, 4)])
def test_a_golden_file_of_one_sample_fills_every_batch(batches):
    assert {len(rows) for rows in _plan(1, batches)} == set(batches)
