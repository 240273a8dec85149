"""`OrtRunner` runs on the requested provider or raises; inputs of any kind are checked."""

from __future__ import annotations

import subprocess
import sys
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
from vit_export.benchmark.worker import random_feeds
from vit_export.errors import ArtifactError, InputError, ProviderError, ProviderWarning, UsageError
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
    """float32, by output name."""
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
    ("name", "offered"),
    [
        *(("cud", "'cuda'"), ("CPU", "'cpu'"), ("tensort", "'tensorrt'")),
        *(("CPUExecutionProvider", "'cpu'"), ("DmlExecutionProvider", "'directml'")),
    ],
)
def test_an_unknown_provider_offers_the_nearest(tiny_export, name, offered):
    """Before the file is read."""
    with pytest.raises(UsageError, match=f"unknown provider '{name}'; did you mean {offered}"):
        OrtRunner(tiny_export.path, provider=name)
    with pytest.raises(UsageError, match="known: auto, cpu, cuda, tensorrt, tensorrt-rtx"):
        OrtRunner("none.onnx", provider="xyz")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_the_wheel_lacks_is_refused(tiny_export, provider):
    """Instead of falling back to the CPU; the hint installs the GPU wheel."""
    assert installed_wheels() == ("onnxruntime",)
    with pytest.raises(
        ProviderError, match=r"built without (?s:.*)hint: .*pip install 'onnxruntime-gpu\["
    ):
        OrtRunner(tiny_export.path, provider=provider)


def pretend_cuda(monkeypatch) -> None:
    """Make the CPU wheel look like one that was compiled with CUDA."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)


def test_a_session_that_falls_back_is_refused(tiny_export, monkeypatch, recwarn):
    """This wheel really falls back from CUDA to the CPU, without an error of its own."""
    pretend_cuda(monkeypatch)
    with pytest.raises(
        ProviderError, match=r"'cuda'.*(fell back to CPU|cannot run)(?s:.*)hint: .*doctor"
    ):
        OrtRunner(tiny_export.path, provider="cuda")


def test_auto_uses_the_best_active_provider_and_reports_the_others(
    tiny_export, monkeypatch, recwarn
):
    """A broken CUDA does not fail the load; the reason is in `rejected`."""
    pretend_cuda(monkeypatch)
    runner = OrtRunner(tiny_export.path)
    assert runner.provider == "cpu"
    assert set(runner.rejected) == {"cuda"}
    assert runner.run({"pixel_values": X})["logits"].shape == (3, 10)


def test_auto_does_not_try_what_the_wheel_lacks(tiny_export):
    """With a wheel for CPUs, nothing is rejected."""
    runner = OrtRunner(tiny_export.path)
    assert (runner.provider, runner.rejected) == ("cpu", {})


def test_load_warns_of_a_provider_that_auto_rejected(tiny_export, monkeypatch, recwarn):
    """Where the user calls it; a provider that the wheel lacks is no news."""
    load(tiny_export.path)
    assert not recwarn
    pretend_cuda(monkeypatch)
    load(tiny_export.path)
    (warning,) = (each for each in recwarn if each.category is ProviderWarning)
    assert str(warning.message).startswith("tiny.onnx runs on 'cpu': provider 'cuda'")
    assert warning.filename == __file__
    with pytest.warns(ProviderWarning, match="runs on 'cpu'"):
        load(tiny_export.path, provider=["auto"])


@pytest.mark.parametrize("threads", [0, 257, 10**6, True])
def test_threads_are_from_1_to_256(tiny_export, threads):
    """ONNX Runtime would start them all."""
    with pytest.raises(UsageError, match="expected a whole number from 1 to 256, or None"):
        load(tiny_export.path, threads=threads)


def test_a_list_is_tried_in_its_order(tiny_export):
    """The first that is active; the reasons of those before it are kept."""
    model = load(tiny_export.path, provider=["openvino", "cuda", "cpu"])
    assert model.provider == "cpu"
    assert list(model.rejected) == ["openvino", "cuda"]
    assert "onnxruntime 1" in model.rejected["openvino"]
    assert load(tiny_export.path, provider=["cpu", "cuda"]).rejected == {}


def test_a_list_of_which_none_is_active_is_an_error_with_every_reason(tiny_export):
    """And every way out."""
    with pytest.raises(ProviderError) as caught:
        load(tiny_export.path, provider=("openvino", "qnn"))
    message = str(caught.value)
    assert "no provider of openvino, qnn can run tiny.onnx: provider 'openvino'" in message
    assert "'onnxruntime-openvino'; or on a machine with a Qualcomm NPU: pip install" in message


@pytest.mark.parametrize(
    "provider", [[], ["cpu", "cpu"], ["cuda", "auto"], None, 5, ["cpu", 3], {"cpu": 1}]
)
def test_a_list_names_different_providers(tiny_export, provider):
    """Auto is a list of its own; a set has no order."""
    with pytest.raises(UsageError, match="expected one provider, or a list of different ones"):
        load(tiny_export.path, provider=provider)


def test_raw_options_need_a_named_provider(tiny_export):
    """Auto could give them to the CPU."""
    with pytest.raises(UsageError, match="those of one provider, not of auto\nhint: name it"):
        load(tiny_export.path, options={"use_tf32": "1"})


@pytest.mark.parametrize("options", ["cuda", CudaOptions, [("use_tf32", "1")]])
def test_options_of_another_kind_are_refused(tiny_export, options):
    """A name, a class that was not called, or pairs."""
    with pytest.raises(UsageError, match=r"expected e\.g\. CudaOptions\(\), or a mapping"):
        load(tiny_export.path, options=options)


@pytest.mark.parametrize("options", ["logid", 5, {3: 1}])
def test_session_options_of_another_kind_are_refused(tiny_export, options):
    """Not a mapping, or one without names."""
    with pytest.raises(UsageError, match=r"session_options=.*: expected a mapping from names"):
        load(tiny_export.path, session_options=options)


@pytest.fixture
def scaled(tmp_path) -> Path:
    """`y = x * s`, where s is a single number: an input of the shape ()."""
    inputs = [helper.make_tensor_value_info("x", 1, ["batch", 3]),
              helper.make_tensor_value_info("s", 1, [])]  # fmt: skip
    y = helper.make_tensor_value_info("y", 1, ["batch", 3])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "s"], ["y"])], "g", inputs, [y])
    opsets = [helper.make_opsetid("", 20)]
    path = tmp_path / "scaled.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_an_input_may_be_a_single_number(scaled, monkeypatch):
    """As an array, as a tensor, from fixed buffers, and in a benchmark."""
    x, s = np.ones((2, 3), np.float32), np.array(2, np.float32)
    runner = OrtRunner(scaled, provider="cpu")
    np.testing.assert_array_equal(load(scaled)({"x": x, "s": s})["y"], 2 * x)
    np.testing.assert_array_equal(runner.run({"x": x, "s": torch.tensor(2.0)})["y"], 2 * x)
    assert random_feeds(runner, 2)["s"].shape == ()
    monkeypatch.setattr(runner, "_records_graphs", True)
    for value in (2, 3):
        found = runner.run({"x": x, "s": np.array(value, np.float32)})["y"]
        np.testing.assert_array_equal(found, value * x)


def test_an_input_without_a_batch_has_no_profile(scaled):
    """A shape of such an option would be that of a vector."""
    options = TensorrtOptions(profile=(1, 2, 3))
    with pytest.raises(UsageError, match=r"unlike s: float32 \(\)"):
        options.provider_options(OnnxFile.read(scaled), "1")


def test_auto_with_a_device_does_not_use_the_cpu(tiny_export):
    """A GPU was requested by its number."""
    with pytest.raises(ProviderError, match=r"'cuda': .*built without CUDAExecutionProvider"):
        load(tiny_export.path, device=1)
    assert load(tiny_export.path, provider=["cuda", "cpu"], device=1).provider == "cpu"


def test_session_options_reach_the_session(tiny_export):
    """Of the model, and of its second session with inner tensors."""
    given = {"intra_op_num_threads": 1, "session.intra_op.allow_spinning": "0"}
    runner = OrtRunner(tiny_export.path, provider="cpu", session_options=given)
    for one in (runner, runner.expose(["features"])):
        options = one._session.get_session_options()
        assert options.intra_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(UsageError, match="threads and intra_op_num_threads: expected only one"):
        OrtRunner(tiny_export.path, provider="cpu", threads=2, session_options=given)
    with pytest.raises(UsageError, match="did you mean 'intra_op_num_threads'"):
        load(tiny_export.path, session_options={"intra_op_num_thread": 1})


def test_a_real_session_reports_the_provider_of_each_node(runner):
    """The check for fallbacks needs it from ONNX Runtime."""
    parts = runner._session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {"CPUExecutionProvider"}
    nodes = [node for part in parts for node in part.get_nodes()]
    assert {"Gelu", "LayerNormalization"} <= {node.op_type for node in nodes}
    assert all(node.name for node in nodes)


def test_torch_tensors_give_the_same_as_arrays(runner):
    """Through DLPack; `run_on_device` returns OrtValues."""
    expected = runner.run({"pixel_values": X})["logits"]
    tensor = torch.from_numpy(X)
    np.testing.assert_array_equal(runner.run({"pixel_values": tensor})["logits"], expected)
    for feeds in ({"pixel_values": tensor}, {"pixel_values": X}):
        value = runner.run_on_device(feeds)["logits"]
        assert isinstance(value, onnxruntime.OrtValue)
        np.testing.assert_array_equal(value.numpy(), expected)
    np.testing.assert_array_equal(torch.from_dlpack(value).numpy(), expected)


def test_arrays_that_are_not_contiguous_give_the_same(runner):
    """An image with its channels last in memory."""
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
        (
            {"pixel_values": X.tolist()},
            "is a list; expected a numpy array or a tensor that supports DLPack",
        ),
        ({"pixel_values": TENSOR.clone().requires_grad_()}, r"x\.detach\(\)\.contiguous\(\)"),
        ({"pixel_values": TENSOR.transpose(2, 3)}, r"x\.detach\(\)\.contiguous\(\)"),
    ],
)
def test_inputs_that_do_not_fit_are_input_errors(runner, feeds, reason):
    """Not errors of the backend; the session works afterwards."""
    with pytest.raises(InputError, match=reason):
        runner.run(feeds)
    with pytest.raises(InputError, match=reason):
        runner.run_on_device(feeds)
    assert runner.run({"pixel_values": X[:1]})["logits"].shape == (1, 10)


WIDE = np.zeros((3, 3, 33, 32), np.float32)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (WIDE, r"height 33 px is no multiple of the patch size \(8 px\)"),
        (torch.from_numpy(WIDE), r"height 33 px is no multiple of the patch size \(8 px\)"),
        (TENSOR[:0], "input 'pixel_values' is empty"),
        (X, "holds 3 images; the engine is built for 1 to 2"),
        (TENSOR, "holds 3 images; the engine is built for 1 to 2"),
    ],
    ids=["array", "tensor", "empty", "batch of an array", "batch of a tensor"],
)
def test_shapes_are_checked_on_the_device_too(tiny_export, monkeypatch, x, reason):
    """The provider would silently cut off pixels, or build another engine."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    shape = ("batch_size", 3, "height", "width")
    monkeypatch.setattr(runner, "inputs", (TensorSpec("pixel_values", "float32", shape),))
    monkeypatch.setattr(runner, "profile", (1, 2, 2))
    for run in (runner.run_on_device, runner.run):
        with pytest.raises(InputError, match=reason):
            run({"pixel_values": x})


def test_arrays_need_no_binding_on_a_gpu(tiny_export, monkeypatch):
    """A binding would wait for all work on the device twice; the GPU is pretended."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    expected = runner.run({"pixel_values": X})["logits"]
    runner._device = ("cuda", 0)
    monkeypatch.setattr(onnxruntime.InferenceSession, "io_binding", None)
    np.testing.assert_array_equal(runner.run({"pixel_values": X})["logits"], expected)


def test_threads_share_a_session(runner):
    """Eight threads, twenty runs each: every result is that of its own input."""
    inputs = [X + np.float32(i / 10) for i in range(8)]
    expected = [runner.run({"pixel_values": x})["logits"] for x in inputs]

    def work(i: int) -> bool:
        run = runner.run if i % 2 else runner.run_on_device
        results = [run({"pixel_values": inputs[i]})["logits"] for _ in range(20)]
        arrays = [r if isinstance(r, np.ndarray) else r.numpy() for r in results]
        return all(np.array_equal(array, expected[i]) for array in arrays)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("external_data", [False, True])
def test_inner_tensors_can_be_exposed(tiny_export, runner, tmp_path, external_data):
    """With weights in the file or beside it, in a folder of any name."""
    path = tmp_path / "мои модели 模型" / "m.onnx"
    path.parent.mkdir()
    source = OnnxFile.read(tiny_export.path)
    pack(source, path, metadata={}, outputs=["logits"], external_data=external_data)
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


def test_a_missing_tensor_cannot_be_exposed(runner):
    """An error that names it."""
    with pytest.raises(ArtifactError, match="nope"):
        runner.expose(["nope"])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_change_the_result(tiny_export, runner, threads):
    """Only the time."""
    found = OrtRunner(tiny_export.path, provider="cpu", threads=threads).run({"pixel_values": X})
    np.testing.assert_allclose(
        found["logits"], runner.run({"pixel_values": X})["logits"], atol=1e-5
    )


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, True])
def test_threads_is_a_whole_number_from_one(tiny_export, threads):
    """ONNX Runtime would take -1, and raise a TypeError for text."""
    with pytest.raises(UsageError, match=f"threads={threads!r}: expected a whole number"):
        load(tiny_export.path, threads=threads)


FORK = """
import os, sys
import numpy as np
from vit_export.runtime import load
threads = int(sys.argv[2]) or None
model = load(sys.argv[1], provider="cpu", threads=threads)
x = np.ones((2, 3, 32, 32), np.float32)
expected = model.run(x)
for _ in range(2):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(model.run(x), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert np.array_equal(model.run(x), expected)
"""


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_loaded_model_runs_in_forked_processes(tiny_export, threads):
    """As web servers and data loaders fork; after it has run in the parent."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(tiny_export.path), str(threads)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr


def test_memory_stays_flat_over_mixed_batch_sizes(tiny_export):
    """ONNX Runtime's arena grows to the largest batch, and no further."""
    script = """
import resource, sys
import numpy as np
from vit_export.runtime import load
model = load(sys.argv[1], provider="cpu", threads=1)
sizes = np.random.default_rng(0).integers(1, 65, 300)
x = np.ones((64, 3, 32, 32), np.float32)
for size in (64, *sizes[:20]):
    model.run(x[:size])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in sizes:
    model.run(x[:size])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", script, str(tiny_export.path)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(child.stdout) < 4096  # KiB


def test_a_graph_that_fails_while_it_runs_is_an_artifact_error(tmp_path):
    """A reshape for one batch size only, which loads without an error."""
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
    """It has an unknown operator."""
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("NoSuchOp", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"odd\.onnx: ONNX Runtime .* cannot load it.*NoSuchOp"):
        OrtRunner(path, provider="cpu")


def test_missing_weights_are_named(tiny_export, tmp_path):
    """ONNX Runtime's message names neither the file nor its folder."""
    path = tmp_path / "m.onnx"
    source = OnnxFile.read(tiny_export.path)
    pack(source, path, metadata={}, outputs=["logits"], external_data=True)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"copy m\.onnx\.data into"):
        OrtRunner(path)


def test_a_damaged_file_is_refused(tiny_export, tmp_path):
    """As after an interrupted copy."""
    path = tmp_path / "cut.onnx"
    path.write_bytes(tiny_export.path.read_bytes()[:50_000])
    with pytest.raises(ArtifactError, match="truncated"):
        load(path)


def test_nothing_is_printed(tiny_export, capfd, monkeypatch, recwarn):
    """Neither by a fallback nor by a run."""
    pretend_cuda(monkeypatch)
    OrtRunner(Path(tiny_export.path)).run({"pixel_values": X})
    captured = capfd.readouterr()
    assert captured.out == ""


def test_options_name_their_provider(tiny_export):
    """Another provider is an error."""
    with pytest.raises(ProviderError, match=r"'cuda': .*built without CUDAExecutionProvider"):
        OrtRunner(tiny_export.path, options=CudaOptions(cuda_graph=True))
    with pytest.raises(ProviderError, match=r"'tensorrt': .*built without Tensorrt"):
        load(tiny_export.path, provider="tensorrt", options=TensorrtOptions(profile=(1, 2, 8)))
    with pytest.raises(
        UsageError, match=r"CudaOptions is for provider 'cuda', but the provider is 'cpu'"
    ):
        load(tiny_export.path, provider="cpu", options=CudaOptions())


def test_a_missing_rtx_plugin_is_named(tiny_export):
    """The hint installs the plugin, not the GPU wheel, which it does not need."""
    with pytest.raises(ProviderError, match=r"GPU: pip install onnxruntime-ep-nv-tensorrt-rtx$"):
        OrtRunner(tiny_export.path, provider="tensorrt-rtx")


def test_runs_from_fixed_buffers_give_the_same(runner, monkeypatch):
    """With the same checks; tensors on the device are refused."""
    recording = OrtRunner(runner.path, provider="cpu")
    monkeypatch.setattr(recording, "_records_graphs", True)
    expected = runner.run({"pixel_values": X})["logits"]
    np.testing.assert_array_equal(recording.run({"pixel_values": X})["logits"], expected)
    with pytest.raises(InputError, match="add the batch dimension"):
        recording.run({"pixel_values": X[0]})
    with pytest.raises(UsageError, match="fixed buffers\nhint: give `run` numpy arrays"):
        recording.run_on_device({"pixel_values": X})
    recording.release()
    np.testing.assert_array_equal(recording.run({"pixel_values": X})["logits"], expected)
