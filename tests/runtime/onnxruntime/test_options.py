"""Options of NVIDIA's providers: their spelling, and their checks before a session."""

from __future__ import annotations

import dataclasses

import msgspec
import onnxruntime
import pytest

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import InputError, OutputError, UsageError
from vit_export.runtime.onnxruntime.options import (
    CudaOptions,
    RawOptions,
    TensorrtOptions,
    TensorrtRtxOptions,
    check_profile,
    options_of,
    set_session_options,
    without_context_file,
)

ENGINES = (TensorrtOptions, TensorrtRtxOptions)


@pytest.fixture(scope="module")
def file(tiny_export) -> OnnxFile:
    """The tiny export: any batch size of 3 x 32 x 32."""
    return OnnxFile.read(tiny_export.path)


@pytest.fixture
def fixed(file) -> OnnxFile:
    """The same with a batch of four."""
    spec = msgspec.structs.replace(file.inputs[0], shape=(4, 3, 32, 32))
    return dataclasses.replace(file, inputs=(spec,))


def test_tf32_is_off_by_default(file):
    """Unlike in ONNX Runtime by itself."""
    assert CudaOptions().provider_options(file, "1")["use_tf32"] == "0"
    assert CudaOptions(tf32=True).provider_options(file, "1")["use_tf32"] == "1"


def test_cuda_options_have_onnxruntimes_names(file):
    """Only those that were given."""
    options = CudaOptions(device=1, cuda_graph=True, memory_limit_bytes=2**30)
    assert options.provider_options(file, "1") == {
        "device_id": "1", "use_tf32": "0", "enable_cuda_graph": "1", "gpu_mem_limit": "1073741824",
    }  # fmt: skip
    assert set(CudaOptions().provider_options(file, "1")) == {"device_id", "use_tf32"}


@pytest.mark.parametrize(
    ("options", "prefix"), [(TensorrtOptions, "trt"), (TensorrtRtxOptions, "nv")]
)
def test_a_profile_names_every_dimension(file, options, prefix):
    """The batch size varies; the others are the model's."""
    found = options(profile=(1, 8, 32)).provider_options(file, "1")
    shapes = [found[f"{prefix}_profile_{end}_shapes"] for end in ("min", "opt", "max")]
    assert shapes == [f"pixel_values:{size}x3x32x32" for size in (1, 8, 32)]


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize(
    "profile", [(0, 1, 2), (2, 1, 4), (1, 8, 4), (1, 2), 8, "1:8:32", (1, "8", 32)]
)
def test_a_profile_out_of_order_is_refused(options, profile):
    """At once, not when an engine is built."""
    with pytest.raises(UsageError, match=r"expected the batch sizes \(min, opt, max\)"):
        options(profile=profile)


def test_a_profile_needs_a_batch_that_is_dynamic_alone(file, fixed):
    """A fixed batch has no range; dynamic heights and widths are unknown."""
    options = TensorrtOptions(profile=(1, 2, 3))
    with pytest.raises(UsageError, match=r"unlike pixel_values: float32 \(4, 3, 32, 32\)"):
        options.provider_options(fixed, "1")
    spec = msgspec.structs.replace(file.inputs[0], shape=("batch_size", 3, "height", "width"))
    with pytest.raises(UsageError, match=r"whose batch alone is dynamic, unlike .*height, width"):
        options.provider_options(dataclasses.replace(file, inputs=(spec,)), "1")


def test_engines_of_other_weights_are_cached_in_other_folders(file, tiny_export, tmp_path):
    """ONNX Runtime names them after the model's file, which may be replaced."""
    path = tmp_path / file.path.name
    content = bytearray(file.path.read_bytes())
    weight = next(t for t in file.initializers if t.name == "head.bias")
    content[weight.offset] ^= 1
    path.write_bytes(content)
    options = TensorrtOptions(engine_cache=tmp_path / "cache")
    folders = [
        options.provider_options(model, version)["trt_engine_cache_path"]
        for model, version in ((file, "1"), (OnnxFile.read(path), "1"), (file, "2"), (file, "1"))
    ]
    assert len(set(folders)) == 3
    assert folders[0] == folders[3]
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {
        f.rpartition("/")[2] for f in folders
    }


def test_engines_with_tf32_have_a_folder_of_their_own(file, tmp_path, monkeypatch):
    """Otherwise a run without TF32 could use an engine with it."""
    options = TensorrtOptions(engine_cache=tmp_path)
    folders = []
    for value in ("0", "1"):
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
        folders.append(options.provider_options(file, "1")["trt_engine_cache_path"])
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    folders.append(options.provider_options(file, "1")["trt_engine_cache_path"])
    assert folders[0] != folders[1] == folders[2]


def test_a_context_file_is_checked_before_the_engine_is_built(file, fixed, tmp_path):
    """The file exists, its folder does not, or there is no batch size."""
    there, new = tmp_path / "there.onnx", tmp_path / "m.onnx"
    there.touch()
    one = TensorrtOptions(profile=(1, 1, 1))
    with pytest.raises(OutputError, match="exists\nhint: remove it"):
        one.check_context_file(file, there)
    with pytest.raises(OutputError, match=r"folder .* does not exist"):
        TensorrtRtxOptions().check_context_file(file, tmp_path / "no" / "m.onnx")
    with pytest.raises(
        UsageError, match=r"tiny.onnx takes any batch(?s:.*)hint: give profile=\(min, opt"
    ):
        TensorrtOptions().check_context_file(file, new)
    TensorrtOptions().check_context_file(fixed, new)
    one.check_context_file(file, new)


@pytest.mark.parametrize("options", ENGINES)
def test_a_context_file_is_an_onnx_file(options):
    """`load` chooses the backend by the suffix."""
    with pytest.raises(UsageError, match=r"expected a name in \.onnx"):
        options(ep_context="m.engine")


def test_a_cache_and_a_context_file_exclude_each_other():
    """The provider would refuse both, or write to another folder."""
    with pytest.raises(UsageError, match="expected only one"):
        TensorrtOptions(ep_context="m.onnx", engine_cache="cache")


@pytest.mark.parametrize("options", ENGINES)
def test_another_session_writes_no_context_file_again(options):
    """All other options stay."""
    asked = options(device=1, profile=(1, 2, 3), ep_context="m.onnx")
    assert without_context_file(asked) == options(device=1, profile=(1, 2, 3))
    assert without_context_file(CudaOptions(tf32=True)) == CudaOptions(tf32=True)


@pytest.mark.parametrize("size", [1, 9])
def test_a_batch_outside_the_profile_is_refused(size):
    """ONNX Runtime would silently build another engine, for minutes."""
    with pytest.raises(InputError, match=rf"holds {size} images; the engine is built for 2 to 8"):
        check_profile((2, 4, 8), {"x": (size, 3)})
    check_profile((2, 4, 8), {"x": (8, 3)})
    check_profile(None, {"x": (size, 3)})


def test_options_belong_to_their_provider():
    """The other providers of a list keep their defaults; any other provider is an error."""
    options = TensorrtRtxOptions(profile=(1, 2, 3))
    assert options_of(["tensorrt-rtx"], options, None) == {"tensorrt-rtx": options}
    assert options_of(["tensorrt-rtx", "cuda"], options, None)["cuda"] == CudaOptions()
    assert options_of(["cpu"], None, None)["cpu"].provider_options(None, "1") == {}
    with pytest.raises(UsageError, match="TensorrtRtxOptions is for provider 'tensorrt-rtx'"):
        options_of(["tensorrt"], options, None)


def test_a_mapping_gives_options_in_onnxruntimes_spelling(file):
    """Beside the defaults of this package: without TF32, on the GPU that was given."""
    options = options_of(["cuda"], {"gpu_mem_limit": 2**30}, 1)["cuda"]
    assert options.provider_options(file, "1") == {
        "device_id": "1", "use_tf32": "0", "gpu_mem_limit": "1073741824",
    }  # fmt: skip
    changed = options_of(["cuda"], {"use_tf32": "1", "device_id": 2}, None)["cuda"]
    assert changed.provider_options(file, "1") == {"device_id": "2", "use_tf32": "1"}
    assert changed.gpu == 2
    openvino = options_of(["openvino"], {"device_type": "GPU.1"}, None)["openvino"]
    assert openvino.provider_options(file, "1") == {"device_type": "GPU.1"}


def test_a_mapping_needs_one_provider():
    """Two providers spell their options differently."""
    with pytest.raises(
        UsageError, match=r"raw options are those of one provider, not of cuda, cpu"
    ):
        options_of(["cuda", "cpu"], {"use_tf32": "0"}, None)


def test_the_cpu_has_no_options():
    """ONNX Runtime would ignore them."""
    with pytest.raises(UsageError, match="provider 'cpu' has no options\nhint: threads and"):
        options_of(["cpu"], {"use_arena": "1"}, None)
    assert options_of(["cpu"], {}, None)["cpu"].entries == {}


@pytest.mark.parametrize("name", ["enable_cuda_graph", "trt_cuda_graph_enable"])
def test_raw_options_cannot_record_graphs(name):
    """A replay would read the buffers of an earlier run."""
    with pytest.raises(UsageError, match=r"options=CudaOptions\(cuda_graph=True\)"):
        RawOptions(provider="cuda", entries={name: "True"})
    RawOptions(provider="cuda", entries={name: "0"})


def test_a_device_is_that_of_every_provider_that_numbers_them(file):
    """The CPU of a list has none."""
    chosen = options_of(["tensorrt", "directml", "cpu"], None, 3)
    assert {name: options.device for name, options in chosen.items()} == {
        "tensorrt": 3, "directml": 3, "cpu": None,
    }  # fmt: skip
    assert chosen["directml"].provider_options(file, "1") == {"device_id": "3"}
    assert options_of(["cuda"], CudaOptions(device=3), 3)["cuda"].gpu == 3


def test_two_different_devices_are_refused():
    """In the argument and in the options."""
    with pytest.raises(UsageError, match="device=1, and 2 in the options"):
        options_of(["cuda"], CudaOptions(device=2), 1)
    with pytest.raises(UsageError, match="device=1, and 2 in the options"):
        options_of(["cuda"], {"device_id": "2"}, 1)
    with pytest.raises(UsageError, match="device='first': expected a whole number"):
        options_of(["cuda"], {"device_id": "first"}, None)


@pytest.mark.parametrize(
    ("provider", "hint"), [("cpu", "leave it out"), ("openvino", 'OpenVINO names .*"GPU.1"')]
)
def test_a_device_needs_a_provider_that_numbers_them(provider, hint):
    """Otherwise it would be ignored."""
    with pytest.raises(UsageError, match=f"does not number its devices\nhint: {hint}"):
        options_of([provider], None, 0)


def test_session_options_are_attributes_or_entries():
    """A mistyped attribute offers the nearest."""
    options = onnxruntime.SessionOptions()
    set_session_options(
        options, {"intra_op_num_threads": 2, "session.intra_op.allow_spinning": "0"}
    )
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    set_session_options(options, {"session.intra_op.allow_spinning": True})  # "True" would be off
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    with pytest.raises(UsageError, match="did you mean 'intra_op_num_threads'"):
        set_session_options(options, {"intra_op_threads": 2})
    with pytest.raises(UsageError, match="unknown session option 'add_initializer'"):
        set_session_options(options, {"add_initializer": 2})
    with pytest.raises(UsageError, match="expected another type than str"):
        set_session_options(options, {"intra_op_num_threads": "2"})


def test_a_memory_limit_is_at_least_one_byte():
    """Zero could mean no limit."""
    with pytest.raises(UsageError, match="expected a whole number, 1 or more"):
        CudaOptions(memory_limit_bytes=0)


@pytest.mark.parametrize("options", [CudaOptions, *ENGINES])
def test_gpus_are_counted_from_zero(options):
    """-1 would be the last of a list."""
    with pytest.raises(UsageError, match="device=-1: expected a whole number, 0 or more"):
        options(device=-1)


@pytest.mark.parametrize("place", ["a file", "a file/below"])
def test_a_cache_whose_folder_cannot_be_created_is_an_error(file, tmp_path, place):
    """The message names the option."""
    (tmp_path / "a file").touch()
    folder = tmp_path / place
    with pytest.raises(OutputError, match=r"engine_cache: the folder .*a file.* cannot be created"):
        TensorrtOptions(engine_cache=folder).provider_options(file, "1")
    with pytest.raises(
        OutputError, match=r"runtime_cache: the folder .*a file.* cannot be created"
    ):
        TensorrtRtxOptions(runtime_cache=folder).provider_options(file, "1")
