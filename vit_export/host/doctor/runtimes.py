"""ONNX Runtime's wheels and providers, the libraries they need, and TensorRT's flavours."""

from __future__ import annotations

from vit_export.host.doctor.types import Fact, Facts, Fault, Finding, find, has_gpu
from vit_export.host.nvidia import (
    RTX_INSTALL,
    RTX_PLUGIN_WHEELS,
    TENSORRT_RTX_WHEELS,
    TENSORRT_WHEELS,
    libraries_of,
    major_of,
    onnxruntime_wheels,
    tensorrt_conflict,
    version_of,
    version_tuple,
)
from vit_export.host.probes import (
    in_child,
    probe_libraries,
    probe_onnxruntime,
    probe_provider,
    probe_rtx_plugin,
)

RUNTIME = "ONNX Runtime"
REMOTE_PROVIDERS = ("AzureExecutionProvider",)  # calls a server; runs no model by itself
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
DRIVER_LIBRARY = "libcuda.so.1"
GPU_WHEEL = "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"


def check_libraries(facts: Facts) -> Finding:
    """CUDA and cuDNN: what the wheel is linked with, and whether the loader finds it."""
    libraries = libraries_of(CUDA)
    if not libraries:
        return (), ()
    needs = f"CUDA {major_of(libraries, 'libcudart')}, found"
    cudnn = major_of(libraries_of(TENSORRT), "libcudnn")
    wanted = (*libraries, f"libcudnn.so.{cudnn}") if cudnn else libraries
    answer = in_child(probe_libraries, *wanted)
    if "error" in answer:
        return (Fact("library", "CUDA of onnxruntime-gpu", answer["error"], usable=False),), ()
    missing = [name for name in answer["missing"] if name != DRIVER_LIBRARY]
    if missing:
        needs = f"CUDA {major_of(libraries, 'libcudart')}, missing: {', '.join(missing)}"
    found = [Fact("library", "CUDA of onnxruntime-gpu", needs, usable=not missing)]
    if cudnn:
        text = f"{cudnn}, {'missing' if f'libcudnn.so.{cudnn}' in missing else 'found'}"
        installed = version_of("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
        text += f" ({installed} as a wheel)" if installed else ""
        found.append(Fact("library", "cuDNN of onnxruntime-gpu", text, text.find("found") > 0))
    faults = []
    if missing and has_gpu(facts):
        what = f"onnxruntime-gpu is linked with libraries that are not found: {', '.join(missing)}"
        if any(name.startswith("libcublas") for name in missing):
            what += " (its extra [cuda] alone brings no cuBLAS)"
        faults.append(Fault(what, GPU_WHEEL))
    return tuple(found), tuple(faults)


def check_tensorrt(facts: Facts) -> Finding:
    """Which TensorRT is installed, and which one ONNX Runtime's provider is linked with.

    Another major version is no fault: engines are built and run without ONNX Runtime.
    """
    found = []
    if installed := version_of(*TENSORRT_WHEELS):
        found.append(Fact("library", "TensorRT", installed, usable=True))
    if rtx := version_of(*TENSORRT_RTX_WHEELS):
        found.append(Fact("library", "TensorRT-RTX", rtx, usable=True))
    if linked := major_of(libraries_of(TENSORRT), "libnvinfer"):
        found.append(_tensorrt_of_provider(linked))
    return tuple(found), ()


def _tensorrt_of_provider(linked: str) -> Fact:
    """By the wheels; where those do not fit, by the loader, which finds what came without one."""
    name = "TensorRT of onnxruntime-gpu"
    conflict = tensorrt_conflict()
    if not conflict:
        return Fact("library", name, f"{linked}, as is installed", usable=True)
    if in_child(probe_libraries, f"libnvinfer.so.{linked}").get("missing") == []:
        return Fact("library", name, f"{linked}, found", usable=True)
    return Fact("library", name, conflict, usable=False)


def check_onnxruntime(facts: Facts) -> Finding:
    """Which wheels of ONNX Runtime are installed, and which of its providers really run."""
    wheels = onnxruntime_wheels()
    extra = "gpu" if has_gpu(facts) else "cpu"
    if not wheels:
        what = "ONNX Runtime is not installed: no model can be run or checked here"
        return _no_runtime(what, f"pip install 'vit-export[{extra}]'")
    if len(wheels) > 1:
        what = f"{' and '.join(wheels)} are both installed: they overwrite each other's files"
        remedy = f"pip uninstall -y {' '.join(wheels)} && pip install 'vit-export[{extra}]'"
        return _no_runtime(what, remedy)
    built = in_child(probe_onnxruntime)
    if "error" in built:
        what = f"{wheels[0]} is installed and cannot be imported: {built['error']}"
        return _no_runtime(what, f"pip install --force-reinstall --no-deps {wheels[0]}")
    found, faults = [], []
    for provider in built["providers"]:
        if provider in REMOTE_PROVIDERS:
            continue
        error = in_child(probe_provider, provider).get("error", "")
        value = f"compiled in, not active: {error}" if error else "active"
        found.append(Fact("provider", provider, value, usable=not error))
        expected = provider == "CPUExecutionProvider" or (provider == CUDA and has_gpu(facts))
        explained = provider == CUDA and _lacks_libraries(facts)
        if error and expected and (not explained or _driver_too_old(built["cuda"], facts)):
            faults.append(_provider_fault(provider, error, built["cuda"], facts))
    plugin, broken = _check_rtx_plugin(facts)
    return (*found, *plugin), (*faults, *broken)


def _lacks_libraries(facts: Facts) -> bool:
    """Whether that is a fault already."""
    found = [fact for fact in facts if fact.name == "CUDA of onnxruntime-gpu"]
    return any("missing:" in fact.value for fact in found)


def _driver_too_old(wheel_cuda: str, facts: Facts) -> bool:
    driver_cuda = find(facts, "gpu", "driver").value.removeprefix("CUDA ")
    return version_tuple(driver_cuda)[:1] < version_tuple(wheel_cuda)[:1]


def _check_rtx_plugin(facts: Facts) -> Finding:
    version = version_of(*RTX_PLUGIN_WHEELS)
    if not version:
        return (), ()
    answer = in_child(probe_rtx_plugin)
    if error := answer.get("error", answer.get("absent", "")):
        text = f"plugin {version}, not active: {error}"
    elif not answer["devices"]:
        text = f"plugin {version}, not active: it finds no GPU that it supports"
    else:
        return (Fact("provider", RTX, f"plugin {version}, active", usable=True),), ()
    fact = Fact("provider", RTX, text, usable=False)
    if error and has_gpu(facts):
        fault = Fault(f"{RTX} does not load: {error}", f"{RTX_INSTALL} --force-reinstall")
        return (fact,), (fault,)
    return (fact,), ()


def _no_runtime(what: str, remedy: str) -> Finding:
    return (Fact("provider", RUNTIME, what, usable=False),), (Fault(what, remedy),)


def _provider_fault(provider: str, error: str, wheel_cuda: str, facts: Facts) -> Fault:
    what = f"{provider} does not run: {error}"
    if provider == "CPUExecutionProvider":
        return Fault(what, "pip install --force-reinstall 'vit-export[cpu]'")
    if _driver_too_old(wheel_cuda, facts):
        driver_cuda = find(facts, "gpu", "driver").value.removeprefix("CUDA ")
        what = f"{what}; its wheel is built for CUDA {wheel_cuda}, the driver is for {driver_cuda}"
        return Fault(what, f"update the NVIDIA driver to one for CUDA {wheel_cuda} or newer")
    return Fault(what, "pip install --upgrade 'vit-export[gpu]'")
