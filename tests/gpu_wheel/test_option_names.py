"""Every provider option of this package exists in the real provider library."""

from __future__ import annotations

import re

import pytest

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.host.nvidia import provider_libraries
from vit_export.runtime.onnxruntime.options import CudaOptions, TensorrtOptions, TensorrtRtxOptions

# Adds a provider with options to a session's options, which is where they are parsed.
ADD = """
import json, sys, onnxruntime
options = onnxruntime.SessionOptions()
try:
    options.add_provider(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps("accepted"))
except Exception as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def add(python, empty_libraries):
    """The answer of the provider's own parser to options."""
    import json

    return lambda name, options: python(ADD, name, json.dumps(options), libraries=empty_libraries)


@pytest.mark.parametrize("name", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_the_parser_refuses_unknown_options(add, name):
    """Otherwise the tests below prove nothing."""
    assert add(name, {}) == "accepted"
    assert re.search(r"option: \"?nonsense", add(name, {"nonsense": "1"}))


def test_the_parsers_refuse_values_that_they_cannot_read(add):
    """Numbers for CUDA, words for TensorRT."""
    assert "use_tf32" in add("CUDAExecutionProvider", {"use_tf32": "maybe"})
    answer = add("TensorrtExecutionProvider", {"trt_engine_cache_enable": "1"})
    assert "should be 'True' or 'False'" in answer


@pytest.mark.parametrize(
    "options",
    [
        CudaOptions(),
        CudaOptions(device=1, tf32=True, cuda_graph=True, memory_limit_bytes=2**33),
    ],
)
def test_cuda_accepts_every_option(add, artifact, options):
    settings = options.provider_options(OnnxFile.read(artifact), "1")
    assert add("CUDAExecutionProvider", settings) == "accepted"


@pytest.mark.parametrize("dump", [False, True])
def test_tensorrt_accepts_every_option(add, artifact, tmp_path, dump):
    more = {"ep_context": tmp_path / "c.onnx"} if dump else {"engine_cache": tmp_path}
    options = TensorrtOptions(device=1, profile=(1, 2, 8), **more)
    settings = options.provider_options(OnnxFile.read(artifact), "1")
    assert len(settings) == (7 if dump else 8)
    assert add("TensorrtExecutionProvider", settings) == "accepted"


def test_the_rtx_plugins_header_lists_every_option(artifact, rtx_folder, tmp_path):
    """Its parser needs a device, so the test reads the header in the wheel."""
    header = (rtx_folder / "tensorrt_rtx_provider_options.h").read_text()
    known = set(re.findall(r'constexpr const char\* k\w+ = "(\w+)"', header))
    options = TensorrtRtxOptions(profile=(1, 2, 8), runtime_cache=tmp_path / "cache")
    settings = options.provider_options(OnnxFile.read(artifact), "1")
    assert set(settings) <= known
    assert len(settings) == 4
    library = (rtx_folder / "libonnxruntime_providers_nv_tensorrt_rtx.so").read_bytes()
    for name in TensorrtRtxOptions(ep_context=tmp_path / "c.onnx").session_entries():
        assert f"\0{name}\0".encode() in library


def test_the_rtx_plugins_header_lists_the_gpus_of_doctor(rtx_folder):
    """Compute capabilities 8.6, 8.9, and all from 12.0 on."""
    header = (rtx_folder / "tensorrt_rtx_provider_options.h").read_text()
    (values,) = re.findall(r"kTargetSMValues\[\] = \{(.*?)\}", header)
    assert values == '"sm86", "sm89", "sm120", "sm121"'
    assert "compute_capability >= 120" in header


def test_the_wheel_is_linked_with_cuda_13_and_tensorrt_10():
    assert "libcudart.so.13" in provider_libraries("CUDAExecutionProvider")
    assert "libcuda.so.1" in provider_libraries("CUDAExecutionProvider")
    assert {"libnvinfer.so.10", "libcudnn.so.9"} <= set(
        provider_libraries("TensorrtExecutionProvider")
    )
