"""Checks of packages, NVIDIA libraries, TensorRT and ONNX Runtime."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys

from packaging.requirements import Requirement

from vit_export import __version__
from vit_export.host.doctor.types import Fact, Facts, Fault, Finding, find, has_gpu
from vit_export.host.nvidia import (
    RTX_INSTALL,
    RTX_PLUGIN_WHEELS,
    TENSORRT_RTX_WHEELS,
    TENSORRT_WHEELS,
    major_version,
    onnxruntime_wheels,
    provider_libraries,
    tensorrt_conflict,
    tensorrt_install,
    version_of,
)
from vit_export.host.probes import (
    probe_libraries,
    probe_onnxruntime,
    probe_provider,
    probe_rtx_plugin,
    run_probe,
)

# Package -> wheels that contain the same module.
WHEELS = {"tensorrt": TENSORRT_WHEELS, "tensorrt-rtx": TENSORRT_RTX_WHEELS}
RUNTIME = "ONNX Runtime"
REMOTE_PROVIDERS = ("AzureExecutionProvider",)  # calls a server; runs no model by itself
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
DRIVER_LIBRARY = "libcuda.so.1"
CUDA_LIBRARIES = "CUDA of onnxruntime-gpu"  # name of a fact
GPU_WHEEL = "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"


@functools.cache
def requirements(extra: str = "") -> tuple[Requirement, ...]:
    """Return what an extra of vit-export installs, by the package's own metadata.

    Args:
        extra: Its name; `""` for what every installation has.

    Raises:
        importlib.metadata.PackageNotFoundError: vit-export is importable, but not installed.
    """
    declared = map(Requirement, importlib.metadata.requires("vit-export") or ())
    return tuple(
        requirement
        for requirement in declared
        if ("extra" in str(requirement.marker)) == bool(extra)
        and (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
    )


def check_system(facts: Facts) -> Finding:
    """Read the versions of Python, the operating system and vit-export itself."""
    python = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    return (
        Fact("system", "vit-export", __version__, usable=True),
        Fact("system", "python", python, usable=True),
        Fact("system", "platform", platform.platform(), usable=True),
    ), ()


def check_packages(facts: Facts) -> Finding:
    """Check the versions of every package that an extra installs, without importing one."""
    try:
        extras = importlib.metadata.metadata("vit-export").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return (), ()
    by_name = {r.name: r for extra in ("", *extras) for r in requirements(extra)}
    findings = [_check_package(requirement) for requirement in by_name.values()]
    faults = tuple(fault for _, faults in findings for fault in faults)
    return tuple(fact for fact, _ in findings), faults


def _check_package(requirement: Requirement) -> tuple[Fact, tuple[Fault, ...]]:
    name, accepted = requirement.name, requirement.specifier
    wheel = next((wheel for wheel in WHEELS.get(name, ()) if version_of(wheel)), name)
    version = version_of(wheel)
    usable = bool(version) and accepted.contains(version, prereleases=True)
    fact = Fact("package", name, version or "not installed", usable=usable)
    if usable or not version:
        return fact, ()
    what = f"{wheel} {version} is installed, and vit-export needs {accepted}"
    return fact, (Fault(what, f"pip install --upgrade '{wheel}{accepted}'"),)


def check_libraries(facts: Facts) -> Finding:
    """Check that the loader finds the CUDA and cuDNN that ONNX Runtime's wheel is linked with."""
    libraries = provider_libraries(CUDA)
    if not libraries:
        return (), ()
    cuda = major_version(libraries, "libcudart")
    cudnn = major_version(provider_libraries(TENSORRT), "libcudnn")
    cudnn_library = f"libcudnn.so.{cudnn}"
    answer = run_probe(probe_libraries, *libraries, *([cudnn_library] if cudnn else []))
    if "error" in answer:
        return (Fact("library", CUDA_LIBRARIES, answer["error"], usable=False),), ()
    missing = [name for name in answer["missing"] if name != DRIVER_LIBRARY]
    value = f"missing: {', '.join(missing)}" if missing else "found"
    found = [Fact("library", CUDA_LIBRARIES, f"CUDA {cuda}, {value}", usable=not missing)]
    if cudnn:
        has_cudnn = cudnn_library not in missing
        installed = version_of("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
        value = f"{cudnn}, {'found' if has_cudnn else 'missing'}"
        value += f" ({installed} as a wheel)" if installed else ""
        found.append(Fact("library", "cuDNN of onnxruntime-gpu", value, usable=has_cudnn))
    if not missing or not has_gpu(facts):
        return tuple(found), ()
    what = f"onnxruntime-gpu is linked with libraries that are not found: {', '.join(missing)}"
    if any(name.startswith("libcublas") for name in missing):
        what += " (its extra [cuda] alone does not install cuBLAS)"
    return tuple(found), (Fault(what, GPU_WHEEL),)


def check_tensorrt(facts: Facts) -> Finding:
    """Read which TensorRT is installed, and which one ONNX Runtime's provider is linked with.

    Different major versions are no fault: engines are built and run without ONNX Runtime.
    """
    flavours = {"TensorRT": TENSORRT_WHEELS, "TensorRT-RTX": TENSORRT_RTX_WHEELS}
    versions = {name: version_of(*wheels) for name, wheels in flavours.items()}
    found = [Fact("library", name, v, usable=True) for name, v in versions.items() if v]
    if linked := major_version(provider_libraries(TENSORRT), "libnvinfer"):
        found.append(_tensorrt_of_provider(linked))
    return tuple(found), ()


def _tensorrt_of_provider(linked: str) -> Fact:
    """Compare the wheels; where they do not match, try the loader, which finds a .deb's too."""
    name = "TensorRT of onnxruntime-gpu"
    conflict = tensorrt_conflict()
    if not conflict:
        return Fact("library", name, f"{linked}, installed", usable=True)
    if run_probe(probe_libraries, f"libnvinfer.so.{linked}").get("missing") == []:
        return Fact("library", name, f"{linked}, found", usable=True)
    return Fact("library", name, f"{conflict}: {tensorrt_install()}", usable=False)


def check_onnxruntime(facts: Facts) -> Finding:
    """Check that one wheel of ONNX Runtime is installed, and try each of its providers."""
    wheels = onnxruntime_wheels()
    extra = "gpu" if has_gpu(facts) else "cpu"
    if not wheels:
        what = "ONNX Runtime is not installed: no model can be run or checked here"
        return _no_runtime(what, f"pip install 'vit-export[{extra}]'")
    if len(wheels) > 1:
        what = f"{' and '.join(wheels)} are both installed: they overwrite each other's files"
        remedy = f"pip uninstall -y {' '.join(wheels)} && pip install 'vit-export[{extra}]'"
        return _no_runtime(what, remedy)
    built = run_probe(probe_onnxruntime)
    if "error" in built:
        what = f"{wheels[0]} is installed and cannot be imported: {built['error']}"
        return _no_runtime(what, f"pip install --force-reinstall --no-deps {wheels[0]}")
    found, faults = [], []
    for provider in built["providers"]:
        if provider in REMOTE_PROVIDERS:
            continue
        error = run_probe(probe_provider, provider).get("error", "")
        value = f"compiled in, not active: {error}" if error else "active"
        found.append(Fact("provider", provider, value, usable=not error))
        if error and (fault := _provider_fault(provider, error, built["cuda"], facts)):
            faults.append(fault)
    plugin, plugin_faults = _check_rtx_plugin(facts)
    return (*found, *plugin), (*faults, *plugin_faults)


def _no_runtime(what: str, remedy: str) -> Finding:
    return (Fact("provider", RUNTIME, what, usable=False),), (Fault(what, remedy),)


def _provider_fault(provider: str, error: str, wheel_cuda: str, facts: Facts) -> Fault | None:
    """Return the fault behind a provider's error; `None` where it is not expected to run."""
    what = f"{provider} does not run: {error}"
    if provider == "CPUExecutionProvider":
        return Fault(what, "pip install --force-reinstall 'vit-export[cpu]'")
    if provider != CUDA or not has_gpu(facts):
        return None
    driver_cuda = find(facts, "gpu", "driver").value.removeprefix("CUDA ")
    if _major(driver_cuda) < _major(wheel_cuda):
        what = f"{what}; its wheel is built for CUDA {wheel_cuda}, the driver is for {driver_cuda}"
        return Fault(what, f"update the NVIDIA driver to one for CUDA {wheel_cuda} or newer")
    if "missing:" in find(facts, "library", CUDA_LIBRARIES).value:
        return None  # `check_libraries` has reported it
    return Fault(what, "pip install --upgrade 'vit-export[gpu]'")


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _check_rtx_plugin(facts: Facts) -> Finding:
    version = version_of(*RTX_PLUGIN_WHEELS)
    if not version:
        return (), ()
    answer = run_probe(probe_rtx_plugin)
    error = answer.get("error", answer.get("absent", ""))
    if not error and answer["devices"]:
        return (Fact("provider", RTX, f"plugin {version}, active", usable=True),), ()
    why = error or "it finds no GPU that it supports"
    fact = Fact("provider", RTX, f"plugin {version}, not active: {why}", usable=False)
    if error and has_gpu(facts):
        fault = Fault(f"{RTX} does not load: {error}", f"{RTX_INSTALL} --force-reinstall")
        return (fact,), (fault,)
    return (fact,), ()
