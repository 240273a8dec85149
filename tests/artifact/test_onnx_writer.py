"""Weights move into the file and out of it, and nothing that is computed changes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from vit_export.artifact import onnx_writer as onnxpack
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_wire import MIN_EXTERNAL_BYTES
from vit_export.artifact.onnx_writer import ALIGNMENT, pack, stamp
from vit_export.errors import ArtifactError

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


def run(path: Path) -> list[np.ndarray]:
    """What onnxruntime makes of a file."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": X})


@pytest.fixture
def source(tiny_export) -> OnnxFile:
    """The tiny export, its weights inside."""
    return OnnxFile.read(tiny_export.path)


def packed(
    source: OnnxFile, path: Path, external_data: bool = False, **changes: object
) -> OnnxFile:
    """Pack with the outputs of the source."""
    arguments = {"metadata": {}, "outputs": [spec.name for spec in source.outputs], **changes}
    pack(source, path, external_data=external_data, **arguments)
    return OnnxFile.read(path)


def test_weights_survive_moves_between_inline_and_external(source, tmp_path):
    expected = run(source.path)
    beside = packed(source, tmp_path / "beside.onnx", external_data=True)
    inside = packed(beside, tmp_path / "inside.onnx")
    for file in (beside, inside):
        onnx.checker.check_model(file.path, full_check=True)
        for found, wanted in zip(run(file.path), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert beside.external_files == (tmp_path / "beside.onnx.data",)
    assert inside.external_files == ()
    again = packed(source, tmp_path / "again.onnx")
    assert again.path.read_bytes() == inside.path.read_bytes()


def test_external_weights_start_at_page_boundaries_and_small_ones_stay_inline(source, tmp_path):
    file = packed(source, tmp_path / "m.onnx", external_data=True)
    outside = [t for t in file.initializers if t.location]
    assert outside
    assert {t.location for t in outside} == {"m.onnx.data"}
    assert all(t.offset % ALIGNMENT == 0 for t in outside)
    assert all(t.nbytes >= MIN_EXTERNAL_BYTES for t in outside)
    assert all(t.nbytes < MIN_EXTERNAL_BYTES for t in file.initializers if not t.location)
    last = max(outside, key=lambda t: t.offset)
    assert (tmp_path / "m.onnx.data").stat().st_size == last.offset + last.nbytes
    assert file.size_bytes + 100_000 < source.size_bytes
    ends = sorted((t.offset, t.offset + t.nbytes) for t in outside)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_onnx_reads_every_weight_back(source, tmp_path):
    file = packed(source, tmp_path / "m.onnx", external_data=True)
    before, after = (onnx.load(f.path).graph.initializer for f in (source, file))
    assert [t.name for t in after] == [t.name for t in before]
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))


def test_outputs_that_are_not_kept_stay_as_inner_tensors(tiny_export, tmp_path):
    model = onnx.load(tiny_export.path)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, 1, ["batch_size", *sizes])
        for name, sizes in (("blocks.0", [17, 32]), ("features", [32]))
    )
    path = tmp_path / "more.onnx"
    onnx.save(model, path)
    file = packed(OnnxFile.read(path), tmp_path / "m.onnx", outputs=["logits", "features"])
    assert [spec.name for spec in file.outputs] == ["logits", "features"]
    assert "blocks.0" in file.values
    onnx.checker.check_model(file.path)


def test_typed_data_and_unknown_fields_are_kept(tmp_path):
    weight = helper.make_tensor("weight", 1, [2, 2], [1.0, 2.0, 3.0, 4.0])
    empty = onnx.numpy_helper.from_array(np.zeros(0, np.float32), "empty")
    x, y = (helper.make_tensor_value_info(n, 1, [2, 2]) for n in "xy")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["p"]),
        helper.make_node("Twice", ["p"], ["y"], domain="own"),
    ]
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, empty])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[twice], ir_version=10)
    model.metadata_props.add(key="old", value="dropped")
    path = tmp_path / "source.onnx"
    onnx.save(model, path)
    file = packed(OnnxFile.read(path), tmp_path / "m.onnx", metadata={"new": "kept"})
    assert file.metadata == {"new": "kept"}
    copied = onnx.load(file.path)
    del copied.metadata_props[:], model.metadata_props[:]
    assert copied == model
    session = ort.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.eye(2, dtype=np.float32)})
    np.testing.assert_array_equal(product, [[2, 4], [6, 8]])


def test_weights_too_large_for_one_file_are_refused_before_anything_is_written(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnxpack, "MAX_INLINE_BYTES", 100_000)
    with pytest.raises(ArtifactError, match=r"do not fit into one .*\nhint: .*external data"):
        packed(source, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    packed(source, tmp_path / "m.onnx", external_data=True)


def test_weights_that_end_too_early_are_named(source, tmp_path):
    beside = packed(source, tmp_path / "m.onnx", external_data=True)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"m\.onnx\.data: ends before "):
        packed(beside, tmp_path / "copy.onnx")


@pytest.mark.parametrize("external_data", [False, True])
def test_stamping_again_replaces_what_was_stamped(source, tmp_path, external_data):
    path = tmp_path / "m.onnx"
    first = packed(source, path, external_data, metadata={"a": "1"})
    digest, clean = first.graph_sha256(), path.read_bytes()
    stamp(path, {"vit": "x" * 5000, "b": "猫"})
    assert OnnxFile.read(path).metadata == {"vit": "x" * 5000, "b": "猫"}
    assert OnnxFile.read(path).graph_sha256() == digest
    onnx.checker.check_model(path)
    stamp(path, {"a": "1"})
    assert path.read_bytes() == clean
    stamp(path, {})
    assert OnnxFile.read(path).metadata == {}
    assert onnx.load(path).graph.name == onnx.load(source.path).graph.name


def test_metadata_between_other_fields_is_not_overwritten(tmp_path, source):
    file = packed(source, tmp_path / "m.onnx", metadata={"a": "1"})
    data = file.path.read_bytes() + bytes([5 << 3, 1])  # model_version, after the metadata
    file.path.write_bytes(data)
    with pytest.raises(ArtifactError, match="metadata stands between other fields"):
        stamp(file.path, {"b": "2"})
    assert file.path.read_bytes() == data
