"""Without a GPU every provider of the real GPU wheel is refused, with the reason."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from vit_export.artifact.golden import Golden
from vit_export.errors import ProviderError, ProviderWarning
from vit_export.gate.validate import compare
from vit_export.host.nvidia import load_tensorrt
from vit_export.runtime import load
from vit_export.runtime.onnxruntime.options import CudaOptions, TensorrtOptions
from vit_export.runtime.onnxruntime.providers import installed_wheels

REFUSED = """
import json, sys
from vit_export.errors import ProviderError
from vit_export.runtime import load
try:
    load(sys.argv[1], provider=sys.argv[2])
except ProviderError as error:
    print(json.dumps(str(error)))
"""


def run(*arguments) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "vit_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_only_the_real_gpu_wheel_is_installed():
    """Otherwise the tests in this folder prove nothing."""
    assert installed_wheels() == ("onnxruntime-gpu",)
    assert importlib.metadata.version("onnxruntime-gpu") == onnxruntime.__version__
    assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert importlib.util.find_spec("torch") is None


def test_onnxruntime_itself_falls_back_without_an_error(artifact, capfd):
    """This package turns it into an error."""
    session = onnxruntime.InferenceSession(artifact, providers=["CUDAExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]
    capfd.readouterr()


@pytest.mark.parametrize("options", [None, CudaOptions(cuda_graph=True), CudaOptions(tf32=True)])
def test_cuda_is_refused_with_the_library_that_is_missing(artifact, options, capfd):
    """Nothing is printed."""
    with pytest.raises(ProviderError) as caught:
        load(artifact, provider="cuda", options=options)
    assert "provider 'cuda' cannot start: libcublasLt.so.13: cannot open shared" in str(
        caught.value
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [None, TensorrtOptions(profile=(1, 2, 8))])
def test_tensorrt_is_refused_with_the_major_version_that_it_needs(artifact, options, capfd):
    """By the libraries of the wheel."""
    with pytest.raises(ProviderError) as caught:
        load(artifact, provider="tensorrt", options=options)
    message = str(caught.value)
    assert "provider 'tensorrt' cannot start: libcublas.so.13: cannot open shared" in message
    assert (
        "linked with TensorRT 10 (libnvinfer.so.10) and no TensorRT wheel is installed" in message
    )
    assert "pip install 'tensorrt-cu13>=10,<11'" in message
    assert "onnxruntime_src" not in message
    assert capfd.readouterr() == ("", "")


def test_an_installed_tensorrt_11_is_named(artifact, python, wheel):
    """The provider needs TensorRT 10."""
    folder = wheel("tensorrt-cu13", "11.4.0.106")
    message = python(REFUSED, artifact, "tensorrt", packages=folder)
    assert "linked with TensorRT 10 (libnvinfer.so.10) and TensorRT 11.4.0.106 is" in message


def test_the_rtx_plugin_is_refused_with_the_library_that_is_missing(artifact, python):
    """The plugin is installed, the driver is not."""
    message = python(REFUSED, artifact, "tensorrt-rtx")
    assert "its plugin cannot be loaded (libcuda.so.1: cannot open shared object" in message


def test_the_rtx_plugin_is_refused_where_it_finds_no_gpu(artifact, python, empty_driver):
    """Loaded and registered with a driver that has no device."""
    message = python(REFUSED, artifact, "tensorrt-rtx", libraries=empty_driver)
    assert "the plugin finds no device that it supports" in message


def test_the_rtx_plugin_is_refused_with_the_error_of_cuda(artifact, python, empty_libraries):
    """The runtime counts devices and fails at the first."""
    message = python(REFUSED, artifact, "tensorrt-rtx", libraries=empty_libraries)
    assert "its plugin cannot be loaded (11 : EP_FAIL : CUDA error: an empty library" in message


def test_both_wheels_are_refused_by_every_nvidia_provider(artifact, python, wheel):
    folder = wheel("onnxruntime", "1.32.0")
    for provider in ("cuda", "tensorrt", "tensorrt-rtx"):
        message = python(REFUSED, artifact, provider, packages=folder)
        assert "onnxruntime and onnxruntime-gpu are both installed and overwrite" in message


def test_auto_runs_on_the_cpu_and_keeps_the_reason(artifact, capfd):
    with pytest.warns(ProviderWarning, match=r"edge\.onnx runs on 'cpu': provider 'cuda' cannot"):
        vit = load(artifact)
    assert vit.provider == "cpu"
    assert "libcublasLt.so.13: cannot open" in vit.runner.rejected["cuda"]
    assert capfd.readouterr() == ("", "")
    x = np.zeros((2, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(vit.run(x), load(artifact, provider="cpu").run(x))


def test_the_gate_passes_on_the_cpu_of_this_wheel(artifact):
    golden = Golden.read(artifact.with_suffix(".golden.npz"))
    assert compare(load(artifact, provider="cpu").runner, golden).passed


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_command_ends_with_the_reason_and_status_1(artifact, tmp_path, command, provider):
    picture = tmp_path / "x.png"
    from PIL import Image

    Image.new("RGB", (40, 40)).save(picture)
    files = [artifact, picture] if command == "predict" else [artifact]
    done = run(command, *files, "--provider", provider)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: provider '{provider}'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_command_notes_once_the_provider_that_auto_rejected(artifact, tmp_path, command):
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    done = run(command, artifact, *([tmp_path / "x.png"] if command == "predict" else []))
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1, done.stderr
    assert notes[0].startswith("note: edge.onnx runs on 'cpu': provider 'cuda' cannot start")


def test_no_load_changes_the_level_of_onnxruntimes_log(artifact, python):
    """A process that logs everything still does, after a provider was refused and another ran."""
    code = (
        "import json, sys, onnxruntime, warnings\n"
        "from vit_export.runtime import load\n"
        "onnxruntime.set_default_logger_severity = lambda level: sys.exit('was changed')\n"
        "warnings.simplefilter('ignore')\n"
        "print(json.dumps(load(sys.argv[1]).provider))"
    )
    assert python(code, artifact) == "cpu"


def test_doctor_finds_no_fault_without_a_gpu_and_names_what_the_wheel_needs():
    done = run("doctor", "--json", "--strict")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == []
    facts = {(fact["topic"], fact["name"]): fact["value"] for fact in found["facts"]}
    for name in ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"):
        assert facts["library", name] == "missing"
    assert "linked with TensorRT 10" in facts["library", "libnvinfer.so.10"]
    assert "libcublasLt.so.13" in facts["provider", "CUDAExecutionProvider"]
    plugin = facts["provider", "NvTensorRTRTXExecutionProvider"]
    assert plugin.startswith("plugin 0.5.0, not active: libcuda.so.1")


def test_doctor_finds_both_wheels_beside_the_real_one(python, wheel):
    """By the module that both contain."""
    code = (
        "import dataclasses, json; from vit_export.host.doctor.abilities import examine; "
        "print(json.dumps(dataclasses.asdict(examine())['faults']))"
    )
    (fault,) = python(code, packages=wheel("onnxruntime", "1.32.0"))
    assert fault["what"].startswith("onnxruntime and onnxruntime-gpu are both installed")
    assert fault["remedy"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_tensorrt_is_found_where_its_wheel_puts_it(python, empty_libraries, tmp_path):
    """The dynamic loader does not search there."""
    (tmp_path / "tensorrt_libs").mkdir()
    for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
        (tmp_path / "tensorrt_libs" / name).write_bytes((empty_libraries / name).read_bytes())
    code = (
        "import ctypes, json; from vit_export.host.nvidia import load_tensorrt\n"
        "def loads():\n"
        "    try: return bool(ctypes.CDLL('libnvinfer.so.10'))\n"
        "    except OSError: return False\n"
        "before = loads(); load_tensorrt(); print(json.dumps([before, loads()]))"
    )
    assert python(code, packages=tmp_path) == [False, True]
    load_tensorrt()  # without it nothing happens
