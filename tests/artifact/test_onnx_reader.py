"""A file is read as onnx reads it, without onnx; and a damaged one is called damaged."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from vit_export.artifact.manifest import METADATA_KEY, TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import pack
from vit_export.errors import ArtifactError


def foreign_model() -> onnx.ModelProto:
    """As other tools write it: numbers not raw, several domains, dimensions of every kind."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [3, 2], np.arange(6.0).tolist())
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 2])
    half = numpy_helper.from_array(np.ones(4, np.float16), "half")
    empty = numpy_helper.from_array(np.zeros((0, 2), np.float32), "empty")
    sizes = {"x": ["batch", 3], "free": [None, "n", 4], "weight": [3, 2]}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sizes.items()]
    scalar = helper.make_tensor_value_info("scalar", TensorProto.INT32, [])
    unknown = helper.make_empty_tensor_value_info("unknown")
    unranked = helper.make_tensor_value_info("unranked", TensorProto.DOUBLE, None)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="multiply"),
        helper.make_node("Reshape", ["product", "shape"], ["y"]),
        helper.make_node("Dropout", ["y"], ["z", ""]),
        helper.make_node("FusedGelu", ["z", ""], ["g"], domain="com.microsoft"),
        helper.make_node("Relu", ["g"], ["scalar"]),
        helper.make_node("Relu", ["g"], ["unranked"]),
        helper.make_node("Relu", ["g"], ["unknown"]),
    ]
    graph = helper.make_graph(
        nodes, "größe", inputs, [scalar, unknown, unranked], [weight, shape, half, empty]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="tool", ir_version=9)
    model.producer_version = "1.2"
    helper.set_model_props(model, {"names": "{0: '猫'}", "empty": ""})
    return model


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The model of another tool on disk."""
    path = tmp_path / "foreign.onnx"
    path.write_bytes(foreign_model().SerializeToString())
    return path


def signature(values) -> list[tuple[str, list[int | str]]]:
    """Names and dimensions, as onnx tells them."""
    result = []
    for value in values:
        dims = value.type.tensor_type.shape.dim
        sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
        result.append((value.name, sizes))
    return result


@pytest.mark.parametrize("which", ["tiny", "foreign"])
def test_a_file_is_read_as_onnx_reads_it(which, tiny_export, foreign):
    path = tiny_export.path if which == "tiny" else foreign
    model = onnx.load(path)
    file = OnnxFile.read(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    assert [(s.name, list(s.shape)) for s in file.inputs] == signature(inputs)
    assert [(s.name, list(s.shape)) for s in file.outputs] == signature(model.graph.output)
    assert file.opsets == {entry.domain: entry.version for entry in model.opset_import}
    assert file.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert file.ir_version == model.ir_version
    assert file.producer == f"{model.producer_name} {model.producer_version}".strip()
    assert file.size_bytes == path.stat().st_size
    assert [(n.op_type, n.domain, list(n.inputs), list(n.outputs)) for n in file.nodes] == [
        (n.op_type, n.domain, list(n.input), list(n.output)) for n in model.graph.node
    ]
    assert [(t.name, t.dtype) for t in file.initializers] == [
        (t.name, numpy_helper.to_array(t).dtype.name) for t in model.graph.initializer
    ]
    assert [t.nbytes for t in file.initializers] == [
        len(t.raw_data) if t.HasField("raw_data") else -1 for t in model.graph.initializer
    ]


def test_the_bytes_of_a_weight_are_at_its_offset(tiny_export):
    file = OnnxFile.read(tiny_export.path)
    data = tiny_export.path.read_bytes()
    for proto, tensor in zip(
        onnx.load(tiny_export.path).graph.initializer, file.initializers, strict=True
    ):
        assert data[tensor.offset : tensor.offset + tensor.nbytes] == proto.raw_data
    assert file.weights_bytes == sum(t.nbytes for t in file.initializers) > 100_000


def test_dtypes_of_inputs_and_outputs_have_numpys_names(foreign):
    file = OnnxFile.read(foreign)
    assert file.inputs == (
        TensorSpec("x", "float32", ("batch", 3)),
        TensorSpec("free", "float32", ("?", "n", 4)),
    )
    assert [(s.name, s.dtype, s.shape) for s in file.outputs] == [
        ("scalar", "int32", ()), ("unknown", "type 0", ()), ("unranked", "float64", ()),
    ]  # fmt: skip


def test_operators_are_counted_with_their_domain(foreign):
    file = OnnxFile.read(foreign)
    assert file.op_counts == {
        "Relu": 3, "MatMul": 1, "Reshape": 1, "Dropout": 1, "com.microsoft::FusedGelu": 1,
    }  # fmt: skip
    assert next(iter(file.op_counts)) == "Relu"
    assert file.values == {"product", "y", "z", "g", "scalar", "unknown", "unranked"}
    assert file.manifest is None


def test_the_default_domain_has_one_name(tmp_path):
    model = foreign_model()
    model.opset_import[0].domain = "ai.onnx"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert OnnxFile.read(path).opsets == {"": 18, "com.microsoft": 1}


def test_a_negative_dimension_is_dynamic(tmp_path):
    model = foreign_model()
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=-1)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert OnnxFile.read(path).outputs[0].shape == ("?",)


def test_the_manifest_is_found(tiny_export):
    assert OnnxFile.read(str(tiny_export.path)).manifest == tiny_export.manifest


def test_a_damaged_manifest_is_an_error(tmp_path):
    model = foreign_model()
    helper.set_model_props(model, {METADATA_KEY: "{"})
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"odd\.onnx: its metadata key"):
        _ = OnnxFile.read(path).manifest


def read_or_refuse(path: Path, data: bytes) -> None:
    """Reading may succeed or say ArtifactError; nothing else."""
    path.write_bytes(data)
    with contextlib.suppress(ArtifactError):
        file = OnnxFile.read(path)
        _ = file.manifest
        file.check_external_data()


def test_a_file_cut_off_at_any_byte_is_read_or_refused(tiny_export, tmp_path):
    data = tiny_export.path.read_bytes()
    size = len(data)
    places = {*range(60), *range(size - 60, size), *np.linspace(0, size, 90).astype(int)}
    for place in sorted(int(p) for p in places):
        read_or_refuse(tmp_path / "cut.onnx", data[:place])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_called_truncated(tiny_export, tmp_path, share):
    data = tiny_export.path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ArtifactError, match=r"cut\.onnx: .*truncated.*\nhint: copy the file again"):
        OnnxFile.read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path, data):
    path = tmp_path / "random.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"random\.onnx"):
        OnnxFile.read(path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 10**6), st.integers(0, 255))
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path, at, byte, at2, byte2):
    data = bytearray(EXTERNAL)
    data[at % len(data)] = byte
    data[at2 % len(data)] = byte2
    read_or_refuse(tmp_path / "changed.onnx", bytes(data))


def external_model() -> bytes:
    """The foreign model with one weight in a file beside it."""
    model = foreign_model()
    tensor = model.graph.initializer.add(name="beside", data_type=1, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.data"), ("offset", "16"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


EXTERNAL = external_model()


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "ten"), ("length", "1e3"), ("offset", ""), ("offset", "-8")]
)
def test_external_data_at_an_invalid_offset_is_refused(tmp_path, key, value):
    model = onnx.ModelProto.FromString(EXTERNAL)
    next(e for e in model.graph.initializer[-1].external_data if e.key == key).value = value
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"odd\.onnx"):
        OnnxFile.read(path)


def test_missing_external_data_is_named_with_where_to_put_it(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(EXTERNAL)
    file = OnnxFile.read(path)
    assert file.external_files == (tmp_path / "w.data",)
    with pytest.raises(ArtifactError, match=rf"copy w\.data into {tmp_path}"):
        file.check_external_data()


def test_short_external_data_is_called_truncated(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(EXTERNAL)
    (tmp_path / "w.data").write_bytes(bytes(31))
    with pytest.raises(ArtifactError, match=r"31 bytes, but 'beside' .* ends at byte 32"):
        OnnxFile.read(path).check_external_data()
    (tmp_path / "w.data").write_bytes(bytes(32))
    OnnxFile.read(path).check_external_data()


def test_an_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(ArtifactError, match="the file is empty"):
        OnnxFile.read(path)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        OnnxFile.read(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match="is a folder, expected a file"):
        OnnxFile.read(tmp_path)


def test_an_image_is_recognised(photographs, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    for path in (photographs[0], tmp_path / "x.png"):
        with pytest.raises(ArtifactError, match="is an image, not an ONNX file"):
            OnnxFile.read(path)


def test_a_golden_file_is_recognised_and_the_artifact_beside_it_named(tiny_export, tmp_path):
    path = tmp_path / "m.golden.npz"
    shutil.copy(tiny_export.golden, path)
    with pytest.raises(ArtifactError, match=r"is a golden file, .*\nhint: .*/m\.onnx$"):
        OnnxFile.read(path)
    (tmp_path / "m.engine").touch()
    with pytest.raises(ArtifactError, match=r"\nhint: give the artifact: .*/m\.engine$"):
        OnnxFile.read(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.engine", "is an engine already"),
        ("x.engine.json", r"is an engine's sidecar, .*\nhint: give the engine: .*/x\.engine$"),
        ("x.plan.json", r"is an engine's sidecar, .*\nhint: give the engine: .*/x\.plan$"),
    ],
)
def test_an_engine_and_its_sidecar_are_recognised_by_name(tmp_path, name, words):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ArtifactError, match=words):
        OnnxFile.read(tmp_path / name)


def test_a_checkpoint_is_recognised_and_the_export_command_suggested(tmp_path):
    weights = {"head.weight": torch.zeros(3, 2)}
    torch.save(weights, tmp_path / "zip.pth")
    torch.save(weights, tmp_path / "pickle.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "w.safetensors")
    for name, kind in (("zip.pth", "zip archive"), ("pickle.pth", "pickle"),
                       ("w.safetensors", "safetensors")):  # fmt: skip
        path = tmp_path / name
        told = rf"is a checkpoint \(a? ?{kind}.*\nhint: .*vit-export onnx --weights {path}"
        with pytest.raises(ArtifactError, match=told):
            OnnxFile.read(path)


@pytest.mark.parametrize("start", [b"", b"\x80", b"PK", b"12345678{", b"\x80\x01", b"{}"])
def test_a_file_that_starts_like_a_checkpoint_is_not_called_one(tmp_path, start):
    path = tmp_path / "odd.onnx"
    path.write_bytes(start + b"\xff" * 20)
    with pytest.raises(ArtifactError, match="not an ONNX file, or a truncated one"):
        OnnxFile.read(path)


@pytest.mark.parametrize("external_data", [False, True])
def test_inner_tensors_are_exposed_without_the_weights(tiny_export, tmp_path, external_data):
    path = tmp_path / "m.onnx"
    source = OnnxFile.read(tiny_export.path)
    names = [spec.name for spec in source.outputs]
    pack(source, path, metadata={}, outputs=names, external_data=external_data)
    file = OnnxFile.read(path)
    blob = file.expose(["blocks.1", "logits", "features"])
    assert len(blob) < file.size_bytes - 100_000 if not external_data else len(blob) < 70_000
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(tmp_path)
    )
    session = ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["logits", "blocks.1", "features"]
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    logits, block, _ = session.run(None, {"pixel_values": x})
    plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(logits, plain.run(None, {"pixel_values": x})[0], atol=1e-6)
    assert block.shape == (2, 17, 32)


def test_the_hash_covers_everything_but_the_metadata(tmp_path):
    path = tmp_path / "m.onnx"
    (tmp_path / "w.data").write_bytes(bytes(32))

    def hashed(model: onnx.ModelProto) -> str:
        path.write_bytes(model.SerializeToString())
        return OnnxFile.read(path).graph_sha256()

    model = onnx.ModelProto.FromString(EXTERNAL)
    first = hashed(model)
    helper.set_model_props(model, {"other": "metadata"})
    assert hashed(model) == first
    model.graph.initializer[0].float_data[0] += 1
    assert (second := hashed(model)) != first
    (tmp_path / "w.data").write_bytes(bytes(31) + b"\1")
    assert (third := hashed(model)) != second
    model.graph.node[0].name = "renamed"
    assert hashed(model) != third


def test_counts_agree_with_onnx_on_the_tiny_export(tiny_export):
    expected = Counter(node.op_type for node in onnx.load(tiny_export.path).graph.node)
    assert OnnxFile.read(tiny_export.path).op_counts == dict(expected)


def test_a_path_that_is_not_utf8_is_refused():
    """ONNX Runtime cannot open it; the message can be printed."""
    with pytest.raises(ArtifactError, match=r"caf\\udce9.*not UTF-8.*\nhint: rename") as caught:
        OnnxFile.read(Path("caf\udce9/model.onnx"))
    str(caught.value).encode()
