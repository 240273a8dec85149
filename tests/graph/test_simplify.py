"""The simplifier may do little, but it may not lose anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pytest
from onnx import helper, numpy_helper

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import SimplifyError
from vit_export.graph import simplify as module
from vit_export.graph.export import export_module
from vit_export.graph.simplify import simplify
from vit_export.reference.outputs import vit_outputs

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def raw(make_model, tmp_path_factory) -> Path:
    """The tiny model as torch exports it, weights beside it."""
    path = tmp_path_factory.mktemp("raw") / "raw.onnx"
    spec = TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32))
    return export_module(vit_outputs(make_model()), path, [spec]).path


def run(path: Path) -> list[np.ndarray]:
    """Every output, by onnxruntime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": X})


def test_inputs_outputs_and_what_is_computed_stay(raw):
    """Names in order; block outputs included."""
    result = simplify(raw, raw.with_name("simplified.onnx"))
    before, after = OnnxFile.read(raw), OnnxFile.read(result.path)
    assert [s.name for s in after.inputs] == ["pixel_values"]
    assert [s.name for s in after.outputs] == [s.name for s in before.outputs]
    assert after.inputs == before.inputs
    assert (result.nodes_before, result.nodes) == (len(before.nodes), len(after.nodes))
    assert result.nodes <= result.nodes_before
    for found, wanted in zip(run(result.path), run(raw), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_simplifying_again_changes_nothing(raw):
    """Neither nodes nor bytes; nor does a second run on the same file."""
    once = simplify(raw, raw.with_name("once.onnx"))
    same = simplify(raw, raw.with_name("same.onnx"))
    twice = simplify(once.path, raw.with_name("twice.onnx"))
    assert twice.nodes == once.nodes
    assert twice.path.read_bytes() == once.path.read_bytes() == same.path.read_bytes()


def test_what_adds_nothing_is_removed(tmp_path):
    """A chain of constants becomes one; layers keep their MatMul and Add."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "weight")
    bias = numpy_helper.from_array(np.ones(3, np.float32), "bias")
    x, y = (helper.make_tensor_value_info(n, 1, ["n", 4, 3]) for n in "xy")
    nodes = [
        helper.make_node("Add", ["bias", "bias"], ["two"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("MatMul", ["same", "weight"], ["product"]),
        helper.make_node("Add", ["product", "two"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    result = simplify(tmp_path / "m.onnx", tmp_path / "s.onnx")
    assert list(OnnxFile.read(result.path).op_counts) == ["MatMul", "Add"]
    assert (result.nodes_before, result.nodes) == (4, 2)


def test_large_weights_stay_where_they_are(raw, monkeypatch):
    """Above the limit they are never loaded, and both files refer to the same data."""
    monkeypatch.setattr(module, "FOLDABLE_BYTES", 2000)
    result = simplify(raw, raw.with_name("large.onnx"))
    before, after = OnnxFile.read(raw), OnnxFile.read(result.path)
    outside = {t.name for t in after.initializers if t.location}
    assert "blocks.0.attn.qkv.weight" in outside
    assert outside <= {t.name for t in before.initializers if t.nbytes > 2000}
    assert after.external_files == (raw.with_name("raw.onnx.data"),)
    assert result.path.stat().st_size < raw.with_name("raw.onnx.data").stat().st_size / 2
    for found, wanted in zip(run(result.path), run(raw), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_nothing_of_the_simplifiers_own_metadata_stays(raw):
    """It writes some twenty keys."""
    result = simplify(raw, raw.with_name("plain.onnx"))
    model = onnx.load(result.path)
    assert not model.metadata_props
    assert not model.graph.metadata_props
    assert not any(node.metadata_props for node in model.graph.node)


def test_a_graph_that_cannot_be_right_is_an_error_that_names_the_way_out(tmp_path):
    """Onnxsim raises what its parts raise."""
    x, y = (helper.make_tensor_value_info(n, 1, [2, 3]) for n in "xy")
    node = helper.make_node("MatMul", ["x", "nowhere"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "broken.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SimplifyError, match=r"onnxsim .* failed on broken\.onnx.*--no-simplify"):
        simplify(tmp_path / "broken.onnx", tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()


@pytest.mark.parametrize("error", [RuntimeError("boom"), ValueError("boom")])
def test_a_failure_of_the_simplifier_names_the_way_out(raw, monkeypatch, error):
    """Its message is kept."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(SimplifyError, match=r"failed on raw\.onnx: boom; .*--no-simplify"):
        simplify(raw, raw.with_name("failed.onnx"))
    assert not raw.with_name("failed.onnx").exists()


def drop_output(model: onnx.ModelProto) -> None:
    """Lose the last output."""
    del model.graph.output[-1]


def rename_input(model: onnx.ModelProto) -> None:
    """Call the input something else."""
    model.graph.input[0].name = "input"


def raise_opset(model: onnx.ModelProto) -> None:
    """Ask for newer operators."""
    model.opset_import[0].version += 1


@pytest.mark.parametrize(
    ("damage", "what"),
    [(drop_output, "changed the outputs"), (rename_input, "changed the inputs"),
     (raise_opset, "changed the operator sets")],
)  # fmt: skip
def test_another_signature_is_refused(raw, monkeypatch, damage, what):
    """Whatever the simplifier claims."""

    def odd(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        damage(changed)
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", odd)
    with pytest.raises(SimplifyError, match=f"{what}.*--no-simplify"):
        simplify(raw, raw.with_name("odd.onnx"))
    assert not raw.with_name("odd.onnx").exists()


def test_the_result_must_lie_beside_its_weights(raw, tmp_path):
    """References are relative to the file."""
    with pytest.raises(SimplifyError, match="must lie beside"):
        simplify(raw, tmp_path / "elsewhere.onnx")
