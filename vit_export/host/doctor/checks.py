"""Checks of this machine: packages, GPU, NVIDIA libraries and ONNX Runtime.

Nothing that may crash or print is loaded into this process.
"""

import contextlib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from packaging.requirements import Requirement

from vit_export import __version__
from vit_export.host import nvidia, probes
from vit_export.host.nvidia import CUDA, RTX, TENSORRT

CPU = "CPUExecutionProvider"
RUNTIME = "ONNX Runtime"  # name of the fact that it cannot be used at all
# What the extras install, for a copy of vit-export without metadata; without ONNX Runtime, whose
# providers are tried.
EXTRAS = {
    "cpu": "pillow",
    "export": "torch onnx onnx-ir onnxscript onnxsim safetensors pillow",
    "tensorrt": "tensorrt cuda-bindings cuda-core",
    "tensorrt-rtx": "tensorrt-rtx cuda-bindings cuda-core",
}
MODULES = {"pillow": "PIL", "cuda-bindings": "cuda.bindings", "cuda-core": "cuda.core"}
REMOTE_PROVIDERS = ("AzureExecutionProvider",)  # calls a server; runs no model by itself


@dataclass(frozen=True)
class Fact:
    """Something that was looked for on this machine."""

    topic: str  # "system", "package", "gpu", "library" or "provider"
    name: str  # e.g. "torch" or "CUDAExecutionProvider"
    value: str  # a version, a description, or why it is missing
    usable: bool


@dataclass(frozen=True)
class Fault:
    """Something broken, and the one command (or action) that fixes it."""

    what: str
    remedy: str


Facts = tuple[Fact, ...]
Faults = tuple[Fault, ...]
Findings = Iterator[Fact | Fault]


def find(facts: Facts, topic: str, name: str) -> Fact:
    """Return the fact of that name, or one that is not usable where there is none."""
    matches = (fact for fact in facts if (fact.topic, fact.name) == (topic, name))
    return next(matches, Fact(topic, name, "not available", usable=False))


def capability(facts: Facts) -> tuple[int, int]:
    """Return the compute capability of the first GPU, e.g. (8, 9); (0, 0) where it is unknown."""
    match = re.search(r"compute capability (\d+)\.(\d+)", find(facts, "gpu", "GPU 0").value)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def run_checks(*checks: Callable[[Facts], Findings]) -> tuple[Facts, Faults]:
    """Run checks in order, each with the facts of those before it; return what they found."""
    facts, faults = Facts(), Faults()
    for check in checks:
        findings = tuple(check(facts))
        facts += tuple(finding for finding in findings if isinstance(finding, Fact))
        faults += tuple(finding for finding in findings if isinstance(finding, Fault))
    return facts, faults


def requirements() -> dict[str, list[Requirement]]:
    """Return what each extra of vit-export installs (`""`: the base).

    Without metadata, as in a checkout, the requirements accept any version.
    """
    declared: dict[str, list[Requirement]] = {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in map(Requirement, importlib.metadata.requires("vit-export") or ()):
            marker = requirement.marker
            match = re.search(r'extra == "([\w-]+)"', str(marker))
            extra = match[1] if match else ""
            if marker is None or marker.evaluate({"extra": extra}):
                declared.setdefault(extra, []).append(requirement)
    return {extra: [*map(Requirement, names.split())] for extra, names in EXTRAS.items()} | declared


def _importable(package: str) -> bool:
    """Return whether the module of a package can be found; imports at most its parent."""
    with contextlib.suppress(ModuleNotFoundError):  # of the parent
        return find_spec(MODULES.get(package, package.replace("-", "_"))) is not None
    return False


def check_system(_: Facts) -> Findings:
    """Read the versions of Python, the operating system and vit-export itself."""
    python = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    versions = {"vit-export": __version__, "python": python, "platform": platform.platform()}
    return (Fact("system", name, value, usable=True) for name, value in versions.items())


def check_packages(_: Facts) -> Findings:
    """Check the versions of every package that an extra installs, without importing one."""
    required = {each.name: each for extra in requirements().values() for each in extra}
    for name, requirement in required.items():
        wheel = next(filter(nvidia.version_of, nvidia.WHEELS.get(name, ())), name)
        version, accepted = nvidia.version_of(wheel), requirement.specifier
        if not accepted and not version and _importable(name):
            version = "without metadata"
        usable = bool(version) and (not accepted or accepted.contains(version, prereleases=True))
        yield Fact("package", name, version or "not installed", usable=usable)
        if version and not usable:
            what = f"{wheel} {version} is installed, and vit-export needs {accepted}"
            yield Fault(what, f"pip install --upgrade '{wheel}{accepted}'")


def check_gpu(_: Facts) -> Findings:
    """Read NVIDIA's driver version and its GPUs; a machine without a driver has no fault."""
    answer = probes.run_probe(probes.probe_nvidia)
    gpus = answer.get("gpus", ())
    value = answer.get("absent") or answer.get("error") or f"CUDA {answer['cuda']}"
    yield Fact("gpu", "driver", value, usable=bool(gpus))
    for number, text in enumerate(gpus):
        yield Fact("gpu", f"GPU {number}", text, usable=True)
    if "error" in answer:
        what = f"the NVIDIA driver is installed and does not work: {value}"
        remedy = "sudo reboot  # after a driver update; in a container: start it with --gpus all"
        yield Fault(what, remedy)


def check_libraries(_: Facts) -> Findings:
    """Check which libraries of ONNX Runtime's GPU wheel the loader finds; no fault by itself."""
    linked = dict.fromkeys(nvidia.provider_libraries(CUDA) + nvidia.provider_libraries(TENSORRT))
    answer = probes.run_probe(probes.probe_libraries, *linked) if linked else {}
    if "missing" not in answer:
        return  # a wheel without CUDA, or one that cannot be imported, see `check_onnxruntime`
    conflict = nvidia.tensorrt_conflict()
    for name in linked:
        usable = name not in answer["missing"]
        value = "found" if usable else "missing"
        if conflict and not usable and name.startswith("libnvinfer"):
            value = ": ".join(conflict)
        yield Fact("library", name, value, usable=usable)


def check_onnxruntime(facts: Facts) -> Findings:
    """Check that one wheel of ONNX Runtime is installed, and try each of its providers."""
    wheels, what = nvidia.onnxruntime_wheels(), ""
    has_gpu = find(facts, "gpu", "driver").usable
    remedy = f"pip install 'vit-export[{'gpu' if has_gpu else 'cpu'}]'"
    compiled = probes.run_probe(probes.probe_onnxruntime) if len(wheels) == 1 else {}
    if not wheels:
        what = "ONNX Runtime is not installed: no model can be run or checked here"
    elif len(wheels) > 1:
        what = f"{' and '.join(wheels)} are both installed: they overwrite each other's files"
        remedy = f"pip uninstall -y {' '.join(wheels)} && {remedy}"
    elif "error" in compiled:
        what = f"{wheels[0]} is installed and cannot be imported: {compiled['error']}"
        remedy = f"pip install --force-reinstall --no-deps {wheels[0]}"
    if what:
        yield Fact("provider", RUNTIME, what, usable=False)
        yield Fault(what, remedy)
        return
    for provider in (name for name in compiled["providers"] if name not in REMOTE_PROVIDERS):
        error = probes.run_probe(probes.probe_provider, provider).get("error", "")
        value = f"compiled in, not active: {error}" if error else "active"
        yield Fact("provider", provider, value, usable=not error)
        if provider == CUDA and has_gpu:
            yield from _cuda_fault(facts, error)
        elif provider == CPU and error:
            remedy = "pip install --force-reinstall 'vit-export[cpu]'"
            yield Fault(f"{provider} does not run: {error}", remedy)
    if version := nvidia.version_of(*nvidia.RTX_PLUGIN_WHEELS):
        answer = probes.run_probe(probes.probe_rtx_plugin)
        why = "" if answer.get("devices") else "it finds no GPU that it supports"
        error = answer.get("error", why)
        value = f"plugin {version}, {f'not active: {error}' if error else 'active'}"
        yield Fact("provider", RTX, value, usable=not error)
        if "error" in answer and has_gpu:
            yield Fault(f"{RTX} does not load: {error}", f"{nvidia.RTX_INSTALL} --force-reinstall")


def _cuda_fault(facts: Facts, error: str) -> Findings:
    """Name what CUDA lacks; missing cuDNN too, which ONNX Runtime loads late."""
    libraries = [fact for fact in facts if fact.topic == "library"]
    lacking = [fact.name for fact in libraries if not fact.usable]
    missing = [name for name in lacking if not name.startswith(("libnvinfer", "libnvonnx"))]
    cuda = nvidia.major_version([fact.name for fact in libraries], "libcudart") or "0"
    driver = find(facts, "gpu", "driver").value  # e.g. "CUDA 13.0"
    remedy = "pip install --upgrade 'vit-export[gpu]'"
    if int(cuda) > int(driver.removeprefix("CUDA ").partition(".")[0]):
        error = f"its wheel is built for CUDA {cuda}, and the NVIDIA driver is for {driver}"
        remedy = f"update the NVIDIA driver to one for CUDA {cuda} or newer"
    elif missing:
        error = f"libraries are missing: {', '.join(missing)}"
    if error:
        yield Fault(f"{CUDA} does not run: {error}", remedy)


CHECKS = (check_system, check_packages, check_gpu, check_libraries, check_onnxruntime)
