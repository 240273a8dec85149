"""The gate refuses a damaged artifact by what it computes, and takes a good one however saved."""

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
from vit_export.gate.validate import Comparison, compare
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.export import ExportResult, export
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime.onnxruntime.runner import OrtRunner

Damage = Callable[[onnx.ModelProto], None]


@pytest.fixture
def gate(tiny_export: ExportResult, tmp_path: Path) -> Callable[[Damage], Comparison]:
    """Applies a change to a copy of the tiny artifact, saved by onnx, and runs the gate on it."""

    def run(change: Damage) -> Comparison:
        model = onnx.load(tiny_export.path)
        change(model)
        path = tmp_path / "changed.onnx"
        onnx.save(model, path)
        return compare(OrtRunner(path, provider="cpu"), Golden.read(tiny_export.golden))

    return run


def edit(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of an initializer."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def bypass(model: onnx.ModelProto, node_name: str, data_input: int = 0) -> None:
    """Remove a node, passing one of its inputs on."""
    node = next(n for n in model.graph.node if n.output[0] == node_name)
    kept = node.input[data_input]
    model.graph.node.remove(node)
    for other in model.graph.node:
        for i, name in enumerate(other.input):
            if name == node_name:
                other.input[i] = kept


def test_an_untouched_file_saved_again_by_another_tool_passes(gate):
    """Bytes differ, what is computed does not."""
    comparison = gate(lambda model: None)
    assert comparison.passed, comparison.stage.reason
    assert comparison.stage.batches == (1, 2, 3, 8)
    assert {m.output for m in comparison.stage.measurements} == {"logits", "features"}


def test_a_file_simplified_again_by_another_tool_passes(gate):
    """Node names and layout may change."""

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
    """Every weight counts, from the first to the last."""
    comparison = gate(lambda model: edit(model, weight, lambda values: values * np.float32(1.01)))
    assert not comparison.passed
    with pytest.raises(GateError, match="allowed"):
        comparison.raise_for_failure()


@pytest.mark.parametrize(
    ("node", "data_input"),
    [("blocks.0.attn.qkv/Add", 0), ("blocks.1.mlp.fc1/Add", 0), ("blocks.2.norm1", 0)],
)
def test_a_dropped_bias_or_layernorm_is_refused(gate, tiny_export, node, data_input):
    """What adds little still adds."""
    names = {o for n in onnx.load(tiny_export.path).graph.node for o in n.output}
    full = next(name for name in sorted(names) if name.startswith(node))
    assert not gate(lambda model: bypass(model, full, data_input)).passed


def test_the_first_block_that_diverges_is_named(gate):
    """Blocks before the damage are within their tolerance, the damaged one is not."""
    comparison = gate(
        lambda model: edit(model, "blocks.1.mlp.fc1.weight", lambda v: v * np.float32(1.5))
    )
    assert [block.diverges for block in comparison.blocks] == [False, True, True]
    assert "first tensor outside its tolerance: blocks.1" in comparison.stage.reason


def test_damage_behind_the_last_block_is_located_there(gate):
    """The head is no block."""
    comparison = gate(lambda model: edit(model, "head.bias", lambda v: v + np.float32(0.1)))
    assert "behind the last" in comparison.stage.reason


def test_nan_in_a_weight_is_refused_and_located(gate):
    """NaN compares false with everything; it must not pass for that."""

    def poison(values: np.ndarray) -> np.ndarray:
        values.flat[0] = np.nan
        return values

    comparison = gate(lambda model: edit(model, "blocks.2.mlp.fc2.weight", poison))
    assert not comparison.passed
    assert "NaN" in comparison.stage.reason
    assert "blocks.2" in comparison.stage.reason


def test_a_batch_fixed_to_one_is_refused(gate):
    """The manifest promises a dynamic batch."""

    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    comparison = gate(fix)
    assert not comparison.passed
    assert "batch 2" in comparison.stage.reason


def test_a_zero_head_does_not_hide_a_broken_body(make_model, tmp_path):
    """Features are gated although they are no output."""
    model: VisionTransformer = make_model()
    model.head.weight.data.zero_()
    model.head.bias.data.zero_()
    result = export(model, tmp_path / "zero.onnx")
    damaged = onnx.load(result.path)
    edit(damaged, "blocks.0.mlp.fc1.weight", lambda v: v * np.float32(1.2))
    onnx.save(damaged, result.path)
    comparison = compare(OrtRunner(result.path, provider="cpu"), Golden.read(result.golden))
    assert not comparison.passed
    assert comparison.stage.max_abs == 0  # the logits see nothing
    assert "features" in comparison.stage.reason


def test_rows_that_depend_on_their_neighbours_are_refused(gate):
    """Each row minus a thousandth of the batch's mean: batch 1 differs from batch 8."""

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
    """The same numbers at other places."""
    comparison = gate(lambda model: edit(model, "head.bias", lambda v: v[::-1].copy()))
    assert not comparison.passed


def test_wrong_normalisation_in_the_manifest_is_refused(tiny_export):
    """Normalising the golden images is part of the check."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    other = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    preprocess = runner.manifest.preprocess.__class__(size=(32, 32), **other)
    assert not compare(runner, Golden.read(tiny_export.golden), preprocess=preprocess).passed


def test_a_golden_file_of_another_model_is_named_as_such(tiny_export, make_model, tmp_path):
    """Other input size: an error, not a bad number."""
    other = export(make_model(img_size=48), tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match="another model"):
        compare(OrtRunner(tiny_export.path, provider="cpu"), Golden.read(other.golden))


def test_a_graph_without_the_features_tensor_says_that_it_was_not_measured(gate):
    """Renaming is allowed, but not silent."""

    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == "features":
                        names[i] = "renamed"

    comparison = gate(rename)
    assert comparison.passed
    assert any("features" in note for note in comparison.stage.notes)


def test_the_tolerance_is_four_times_what_torch_rounds(tiny_export):
    """As the gate is defined: max(4 * e32, 1e-6 * max|y64|), over all samples."""
    golden = Golden.read(tiny_export.golden)
    largest = float(np.abs(golden.outputs["logits"]).max())
    expected = max(4 * golden.e32["logits"], 1e-6 * largest)
    assert tiny_export.comparison.stage.tolerance == pytest.approx(expected, rel=1e-12)
    assert 0 < golden.e32["logits"] < 1e-4 * largest


def test_an_output_that_the_manifest_promises_and_the_graph_lost_is_refused(make_model, tmp_path):
    """What is left may be right; the caller of the lost one is not served."""
    result = export(
        make_model(), tmp_path / "two.onnx", settings=ExportSettings(outputs=("tokens", "logits"))
    )
    model = onnx.load(result.path)
    model.graph.output.remove(next(o for o in model.graph.output if o.name == "logits"))
    onnx.save(model, result.path)
    comparison = compare(OrtRunner(result.path, provider="cpu"), Golden.read(result.golden))
    assert not comparison.passed
    assert "logits: promised by the manifest" in comparison.stage.reason


def test_a_golden_file_with_a_loose_baseline_is_refused(tiny_export):
    """Whoever writes 1e9 there would let any graph pass."""
    golden = Golden.read(tiny_export.golden)
    loose = dataclasses.replace(golden, e32={"logits": 1e9, "features": golden.e32["features"]})
    comparison = compare(OrtRunner(tiny_export.path, provider="cpu"), loose)
    assert not comparison.passed
    assert "lets anything pass" in comparison.stage.reason


def test_a_golden_file_without_features_does_not_pass_our_own_models(tiny_export):
    """The body would be unmeasured."""
    golden = Golden.read(tiny_export.golden)
    logits = dataclasses.replace(golden, outputs={"logits": golden.outputs["logits"]})
    comparison = compare(OrtRunner(tiny_export.path, provider="cpu"), logits)
    assert "lacks the features" in comparison.stage.reason


def test_blocks_come_before_the_tokens_they_make(make_model, tmp_path):
    """So that damage in the first block is not called damage of the last tensor."""
    result = export(
        make_model(),
        tmp_path / "tokens.onnx",
        settings=ExportSettings(outputs=("logits", "tokens")),
    )
    assert Golden.read(result.golden).blocks.names == (
        "blocks.0", "blocks.1", "blocks.2", "tokens"
    )  # fmt: skip


@pytest.mark.parametrize("batches", [(1, 2, 3, 5, 16), (4, 6), (2,)])
def test_the_batch_sizes_of_a_profile_are_those_that_are_run(tiny_export, batches):
    """An engine serves some only; rows are compared across all of them."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    stage = compare(runner, Golden.read(tiny_export.golden), batches=batches).stage
    assert stage.passed, stage.reason
    assert stage.batches == batches
