"""What was asked for is what runs, for any kind of tensor; else an error says why."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import pack
from vit_export.errors import ArtifactError, InputError, ProviderError, UsageError
from vit_export.runtime import load
from vit_export.runtime.onnxruntime.options import CudaOptions, TensorrtOptions
from vit_export.runtime.onnxruntime.providers import installed_wheels
from vit_export.runtime.onnxruntime.runner import OrtRunner

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def runner(tiny_export) -> OrtRunner:
    """The tiny export on the CPU."""
    return OrtRunner(tiny_export.path, provider="cpu")


def test_it_computes_what_torch_computes(runner, make_model):
    """float32, by the output's name."""
    found = runner.run({"pixel_values": X})
    assert list(found) == ["logits"]
    assert found["logits"].dtype == np.float32
    with torch.no_grad():
        expected = make_model()(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(found["logits"], expected, atol=2e-5)
    assert runner.provider == "cpu"
    assert [s.name for s in runner.inputs] == ["pixel_values"]
    assert runner.manifest is not None


@pytest.mark.parametrize(
    ("name", "offered"), [("cud", "'cuda'"), ("CPU", "'cpu'"), ("tensort", "'tensorrt'")]
)
def test_an_unknown_provider_offers_the_nearest(tiny_export, name, offered):
    """Before the file is read."""
    with pytest.raises(UsageError, match=f"unknown provider '{name}'; did you mean {offered}"):
        OrtRunner(tiny_export.path, provider=name)
    with pytest.raises(UsageError, match="known: auto, cpu, cuda, tensorrt, tensorrt-rtx"):
        OrtRunner("none.onnx", provider="xyz")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_the_wheel_lacks_is_refused_with_the_command(tiny_export, provider):
    """Never the CPU instead; here the wheel for the CPU is installed."""
    assert installed_wheels() == ("onnxruntime",)
    with pytest.raises(ProviderError, match=r"built without .*pip install 'onnxruntime-gpu\["):
        OrtRunner(tiny_export.path, provider=provider)


def pretend_cuda(monkeypatch) -> None:
    """Make the CPU wheel look like one that was compiled with CUDA."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)


def test_a_session_that_falls_back_is_refused(tiny_export, monkeypatch, recwarn):
    """The real session of this wheel falls back from CUDA to the CPU, without an error."""
    pretend_cuda(monkeypatch)
    with pytest.raises(ProviderError, match=r"'cuda'.*(fell back to CPU|cannot run).*doctor"):
        OrtRunner(tiny_export.path, provider="cuda")


def test_auto_takes_what_is_active_and_says_what_it_passed_over(tiny_export, monkeypatch, recwarn):
    """A broken CUDA is no reason to fail, but to be told."""
    pretend_cuda(monkeypatch)
    runner = OrtRunner(tiny_export.path)
    assert runner.provider == "cpu"
    assert set(runner.rejected) == {"cuda"}
    assert runner.run({"pixel_values": X})["logits"].shape == (3, 10)


def test_auto_does_not_try_what_the_wheel_lacks(tiny_export):
    """On a machine without a GPU nothing was passed over."""
    runner = OrtRunner(tiny_export.path)
    assert (runner.provider, runner.rejected) == ("cpu", {})


def test_a_real_session_tells_where_its_nodes_run(runner):
    """What the check above relies on, on this version of ONNX Runtime."""
    parts = runner._session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {"CPUExecutionProvider"}
    nodes = [node for part in parts for node in part.get_nodes()]
    assert {"Gelu", "LayerNormalization"} <= {node.op_type for node in nodes}
    assert all(node.name for node in nodes)


def test_torch_tensors_give_what_arrays_give(runner):
    """Through dlpack; the results stay OrtValues where asked for."""
    expected = runner.run({"pixel_values": X})["logits"]
    tensor = torch.from_numpy(X)
    np.testing.assert_array_equal(runner.run({"pixel_values": tensor})["logits"], expected)
    for feeds in ({"pixel_values": tensor}, {"pixel_values": X}):
        value = runner.run_on_device(feeds)["logits"]
        assert isinstance(value, onnxruntime.OrtValue)
        np.testing.assert_array_equal(value.numpy(), expected)
    np.testing.assert_array_equal(torch.from_dlpack(value).numpy(), expected)


def test_arrays_that_are_not_contiguous_give_the_same(runner):
    """A picture with its channels last in memory."""
    strided = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected = runner.run({"pixel_values": X})["logits"]
    np.testing.assert_array_equal(runner.run({"pixel_values": strided})["logits"], expected)
    on_device = runner.run_on_device({"pixel_values": strided})["logits"].numpy()
    np.testing.assert_array_equal(on_device, expected)


TENSOR = torch.from_numpy(X)


@pytest.mark.parametrize(
    ("feeds", "reason"),
    [
        ({}, "input 'pixel_values' is missing"),
        ({"pixels": X}, r"unknown input 'pixels'"),
        ({"pixel_values": TENSOR, "more": TENSOR}, "unknown input 'more'"),
        ({"pixel_values": X.astype(np.float16)}, r"dtype float16, expected float32"),
        ({"pixel_values": TENSOR.half()}, r"is float16 \(3, 3, 32, 32\), expected"),
        ({"pixel_values": TENSOR.double()}, r"is float64 \(3, 3, 32, 32\), expected"),
        ({"pixel_values": X[0]}, r"add the batch dimension"),
        ({"pixel_values": TENSOR[0]}, r"is float32 \(3, 32, 32\), expected"),
        ({"pixel_values": X.transpose(0, 2, 3, 1)}, r"channels come first"),
        ({"pixel_values": X * np.nan}, "NaN or infinite"),
        ({"pixel_values": X.astype(">f4")}, "other byte order"),
        ({"pixel_values": X.tolist()}, "is a list; expected a numpy array or a tensor"),
        ({"pixel_values": TENSOR.clone().requires_grad_()}, r"x\.detach\(\)\.contiguous\(\)"),
        ({"pixel_values": TENSOR.transpose(2, 3)}, r"x\.detach\(\)\.contiguous\(\)"),
    ],
)
def test_inputs_that_do_not_fit_are_our_errors(runner, feeds, reason):
    """Not those of the backend; the session still works afterwards."""
    with pytest.raises(InputError, match=reason):
        runner.run(feeds)
    with pytest.raises(InputError, match=reason):
        runner.run_on_device(feeds)
    assert runner.run({"pixel_values": X[:1]})["logits"].shape == (1, 10)


WIDE = np.zeros((3, 3, 33, 32), np.float32)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (WIDE, r"height 33 px is no multiple of the patch \(8 px\)"),
        (torch.from_numpy(WIDE), r"height 33 px is no multiple of the patch \(8 px\)"),
        (TENSOR[:0], "input 'pixel_values' is empty"),
        (X, "holds 3 images; the engine is built for 1 to 2"),
        (TENSOR, "holds 3 images; the engine is built for 1 to 2"),
    ],
    ids=["array", "tensor", "empty", "batch of an array", "batch of a tensor"],
)
def test_what_stays_on_the_device_is_measured_too(tiny_export, monkeypatch, x, reason):
    """A GPU's provider would cut off what is no patch, or build another engine, without a word."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    shape = ("batch_size", 3, "height", "width")
    monkeypatch.setattr(runner, "inputs", (TensorSpec("pixel_values", "float32", shape),))
    monkeypatch.setattr(runner, "options", TensorrtOptions(profile=(1, 2, 2)))
    for run in (runner.run_on_device, runner.run):
        with pytest.raises(InputError, match=reason):
            run({"pixel_values": x})


def test_threads_share_a_session(runner):
    """Eight of them, twenty runs each, every result that of its own input."""
    inputs = [X + np.float32(i / 10) for i in range(8)]
    expected = [runner.run({"pixel_values": x})["logits"] for x in inputs]

    def work(i: int) -> bool:
        run = runner.run if i % 2 else runner.run_on_device
        results = [run({"pixel_values": inputs[i]})["logits"] for _ in range(20)]
        arrays = [r if isinstance(r, np.ndarray) else r.numpy() for r in results]
        return all(np.array_equal(array, expected[i]) for array in arrays)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("external_name", ["", "w.data"])
def test_inner_tensors_can_be_looked_at(tiny_export, runner, tmp_path, external_name):
    """Weights inside the file or beside it, from any folder."""
    path = tmp_path / "m.onnx"
    source = OnnxFile.read(tiny_export.path)
    pack(source, path, metadata={}, outputs=["logits"], external_name=external_name)
    exposed = OrtRunner(path, provider="cpu", threads=1).expose(["blocks.0", "features"])
    found = exposed.run({"pixel_values": X})
    assert list(found) == ["logits", "blocks.0", "features"]
    assert found["blocks.0"].shape == (3, 17, 32)
    np.testing.assert_allclose(
        found["logits"], runner.run({"pixel_values": X})["logits"], atol=1e-5
    )
    assert runner.has_tensor("blocks.0")
    assert not runner.has_tensor("blocks.9")
    assert [s.name for s in runner.outputs] == ["logits"]


def test_a_tensor_that_is_not_there_cannot_be_exposed(runner):
    """The backend's words, our error."""
    with pytest.raises(ArtifactError, match="nope"):
        runner.expose(["nope"])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(tiny_export, runner, threads):
    """But the time."""
    found = OrtRunner(tiny_export.path, provider="cpu", threads=threads).run({"pixel_values": X})
    np.testing.assert_allclose(
        found["logits"], runner.run({"pixel_values": X})["logits"], atol=1e-5
    )


def test_a_graph_that_fails_while_it_runs_is_an_artifact_error(tmp_path):
    """A reshape that fits one batch only, loaded without complaint."""
    x = helper.make_tensor_value_info("x", 1, ["n", 4])
    y = helper.make_tensor_value_info("y", 1, [2, 4])
    shape = numpy_helper.from_array(np.array([2, 4]), "shape")
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", [x], [y],
                              [shape])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "odd.onnx")
    runner = OrtRunner(tmp_path / "odd.onnx", provider="cpu")
    assert runner.run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 4)
    for run in (runner.run, runner.run_on_device):
        with pytest.raises(ArtifactError, match=r"odd\.onnx: fails while it runs on 'cpu': .*esha"):
            run({"x": np.ones((3, 4), np.float32)})


def test_a_file_that_onnxruntime_cannot_load_is_an_artifact_error(tmp_path):
    """An operator that nobody knows."""
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("NoSuchOp", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"odd\.onnx: ONNX Runtime .* cannot load it.*NoSuchOp"):
        OrtRunner(path, provider="cpu")


def test_missing_weights_are_named_before_the_backend_is_asked(tiny_export, tmp_path):
    """Its own message names neither file nor folder."""
    path = tmp_path / "m.onnx"
    source = OnnxFile.read(tiny_export.path)
    pack(source, path, metadata={}, outputs=["logits"], external_name="m.onnx.data")
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"copy m\.onnx\.data into"):
        OrtRunner(path)


def test_a_damaged_file_is_refused(tiny_export, tmp_path):
    """As it comes from a copy that broke off."""
    path = tmp_path / "cut.onnx"
    path.write_bytes(tiny_export.path.read_bytes()[:50_000])
    with pytest.raises(ArtifactError, match="truncated"):
        load(path)


def test_engines_are_refused_by_name(tmp_path):
    """Until there is a runner for them."""
    with pytest.raises(ArtifactError, match="engine"):
        load(tmp_path / "m.engine")
    with pytest.raises(UsageError, match=r"options=CudaOptions.* is for \.onnx files"):
        load(tmp_path / "m.engine", options=CudaOptions())


def test_nothing_is_printed(tiny_export, capfd, monkeypatch, recwarn):
    """Neither by a fallback nor by a run: standard output belongs to the caller."""
    pretend_cuda(monkeypatch)
    OrtRunner(Path(tiny_export.path)).run({"pixel_values": X})
    captured = capfd.readouterr()
    assert captured.out == ""


def test_options_name_their_provider(tiny_export):
    """And never another one; here the wheel lacks it."""
    with pytest.raises(ProviderError, match=r"'cuda': .*built without CUDAExecutionProvider"):
        OrtRunner(tiny_export.path, options=CudaOptions(cuda_graph=True))
    with pytest.raises(ProviderError, match=r"'tensorrt': .*built without Tensorrt"):
        load(tiny_export.path, provider="tensorrt", options=TensorrtOptions(profile=(1, 2, 8)))
    with pytest.raises(UsageError, match=r"CudaOptions is for provider 'cuda', and 'cpu' was"):
        load(tiny_export.path, provider="cpu", options=CudaOptions())


def test_the_rtx_plugin_is_named_where_it_is_missing(tiny_export):
    """It works with this wheel too, so nothing is said of the GPU build."""
    with pytest.raises(ProviderError, match=r"pip install onnxruntime-ep-nv-tensorrt-rtx$"):
        OrtRunner(tiny_export.path, provider="tensorrt-rtx")


def test_a_recording_runner_gives_what_a_plain_one_gives(runner, monkeypatch):
    """Through the same checks of its inputs; tensors of a device are refused by name."""
    recording = OrtRunner(runner.path, provider="cpu")
    monkeypatch.setattr(recording, "options", CudaOptions(cuda_graph=True))
    expected = runner.run({"pixel_values": X})["logits"]
    np.testing.assert_array_equal(recording.run({"pixel_values": X})["logits"], expected)
    with pytest.raises(InputError, match="add the batch dimension"):
        recording.run({"pixel_values": X[0]})
    with pytest.raises(UsageError, match="fixed buffers: give `run` numpy arrays"):
        recording.run_on_device({"pixel_values": X})
    recording.release()
    np.testing.assert_array_equal(recording.run({"pixel_values": X})["logits"], expected)
