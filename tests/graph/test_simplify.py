"""A simplified graph computes the same, and failures of the simplifier are errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pytest
from onnx import helper, numpy_helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import SimplifyError
from vit_export.graph import simplify as module
from vit_export.graph.simplify import simplify

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def raw(raw_export: OnnxFile, tmp_path: Path) -> Path:
    """The tiny model as torch exports it, its weights beside it."""
    shutil.copy(raw_export.path, tmp_path)
    shutil.copy(raw_export.path.with_name("vit.onnx.data"), tmp_path)
    return tmp_path / "vit.onnx"


def run(path: Path) -> list[np.ndarray]:
    """Every output, by onnxruntime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": X})


def test_only_needless_nodes_and_metadata_are_removed(raw):
    """Inputs, outputs and results stay. A second time, on the result too, gives the same bytes."""
    once, same, twice = (raw.with_name(f"{name}.onnx") for name in ("once", "same", "twice"))
    simplify(raw, once)
    before, after = OnnxFile.read(raw), OnnxFile.read(once)
    assert [s.name for s in after.inputs] == ["pixel_values"]
    assert [s.name for s in after.outputs] == [s.name for s in before.outputs]
    assert after.inputs == before.inputs
    assert len(after.nodes) <= len(before.nodes)
    for output, expected in zip(run(once), run(raw), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)
    assert not any(
        holder.metadata_props
        for model in [onnx.load(once)]
        for holder in (model, model.graph, *model.graph.node)
    )
    simplify(raw, same)
    simplify(once, twice)
    assert twice.read_bytes() == once.read_bytes() == same.read_bytes()


def test_needless_nodes_are_removed(tmp_path):
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
    simplify(tmp_path / "m.onnx", tmp_path / "s.onnx")
    assert [node.op_type for node in OnnxFile.read(tmp_path / "s.onnx").nodes] == ["MatMul", "Add"]


def test_large_weights_are_not_loaded(raw, monkeypatch):
    """Both files refer to the same data."""
    monkeypatch.setattr(module, "FOLDABLE_BYTES", 2000)
    large = raw.with_name("large.onnx")
    simplify(raw, large)
    before, after = OnnxFile.read(raw), OnnxFile.read(large)
    outside = {t.name for t in after.initializers if t.location}
    assert "blocks.0.attn.qkv.weight" in outside
    assert outside <= {t.name for t in before.initializers if t.nbytes > 2000}
    assert after.external_files == (raw.with_name("vit.onnx.data"),)
    assert large.stat().st_size < raw.with_name("vit.onnx.data").stat().st_size / 2
    for output, expected in zip(run(large), run(raw), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_broken_graph_is_an_error_with_a_hint(tmp_path):
    """A node reads a tensor that does not exist."""
    x, y = (helper.make_tensor_value_info(n, 1, [2, 3]) for n in "xy")
    node = helper.make_node("MatMul", ["x", "nowhere"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "broken.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        SimplifyError, match=r"onnxsim .* failed on broken\.onnx[\s\S]*hint: .*--no-simplify"
    ):
        simplify(tmp_path / "broken.onnx", tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()


@pytest.mark.parametrize("error", [RuntimeError("boom"), ValueError("boom")])
def test_a_failure_of_the_simplifier_is_an_error_with_a_hint(raw, monkeypatch, error):
    """Its message is kept."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(SimplifyError, match=r"failed on vit\.onnx: boom\nhint: .*--no-simplify"):
        simplify(raw, raw.with_name("failed.onnx"))
    assert not raw.with_name("failed.onnx").exists()


def drop_output(model: onnx.ModelProto) -> None:
    """Remove the last output."""
    del model.graph.output[-1]


def rename_input(model: onnx.ModelProto) -> None:
    """Rename the input."""
    model.graph.input[0].name = "input"


def raise_opset(model: onnx.ModelProto) -> None:
    """Require newer operators."""
    model.opset_import[0].version += 1


@pytest.mark.parametrize(
    ("damage", "what"),
    [(drop_output, "changed the outputs"), (rename_input, "changed the inputs"),
     (raise_opset, "changed the operator sets")],
)  # fmt: skip
def test_changed_inputs_outputs_or_operator_sets_are_refused(raw, monkeypatch, damage, what):
    """Even when the simplifier reports success."""

    def odd(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        damage(changed)
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", odd)
    with pytest.raises(SimplifyError, match=rf"{what}[\s\S]*--no-simplify"):
        simplify(raw, raw.with_name("odd.onnx"))
    assert not raw.with_name("odd.onnx").exists()
