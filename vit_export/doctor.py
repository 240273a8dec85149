"""What this machine can do with a Vision Transformer, and what mends each fault.

Nothing that may crash or print is loaded into this process: versions are read from package
metadata, and `probe` tries the NVIDIA driver and ONNX Runtime in child interpreters.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vit_export import __version__
from vit_export.probe import in_child, probe_nvidia, probe_onnxruntime, probe_provider

RUNTIME = "ONNX Runtime"
REMOTE_PROVIDERS = ("AzureExecutionProvider",)  # calls a server; runs no model by itself

# Extra -> distribution -> oldest version that works; "" is what every installation has.
EXTRAS: dict[str, dict[str, str]] = {
    "": {"numpy": "1.26", "click": "8.1"},
    "cpu": {"onnxruntime": "1.20", "pillow": "10.1"},
    "gpu": {"onnxruntime-gpu": "1.24.1", "pillow": "10.1"},
    "export": {
        "torch": "2.9",
        "onnx": "1.19",
        "onnx-ir": "0.1.16",
        "onnxscript": "0.5",
        "onnxsim": "0.5",
        "safetensors": "0.5",
        "pillow": "10.1",
    },
    "tensorrt": {"tensorrt": "10.12", "cuda-bindings": "12.9"},
    "tensorrt-rtx": {"tensorrt-rtx": "1.4", "cuda-bindings": "12.9"},
}


@dataclass(frozen=True)
class Fact:
    """Something found on this machine.

    Attributes:
        topic: `"system"`, `"package"`, `"gpu"` or `"provider"`.
        name: e.g. `"torch"` or `"CUDAExecutionProvider"`.
        value: A version, a description, or why it is not there.
        usable: Whether it can be used here.
    """

    topic: str
    name: str
    value: str
    usable: bool


@dataclass(frozen=True)
class Fault:
    """Something that is broken, and the one command (or act) that mends it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Ability:
    """Something that can be done here, or why not and what would change that."""

    name: str
    possible: bool
    reason: str = ""
    remedy: str = ""


Facts = tuple[Fact, ...]
Finding = tuple[Facts, tuple[Fault, ...]]
Check = Callable[[Facts], Finding]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, in the order in which it was looked for."""

    facts: Facts
    faults: tuple[Fault, ...]
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dataclasses.asdict(self)


def examine() -> Diagnosis:
    """Look at this machine; takes about a second, more where TensorRT is installed."""
    facts: Facts = ()
    faults: tuple[Fault, ...] = ()
    for check in CHECKS:
        found, broken = check(facts)
        facts, faults = facts + found, faults + broken
    return Diagnosis(facts, faults, tuple(ability(facts) for ability in ABILITIES))


def check_system(facts: Facts) -> Finding:
    """Python, the operating system and vit-export itself."""
    python = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    return (
        Fact("system", "vit-export", __version__, usable=True),
        Fact("system", "python", python, usable=True),
        Fact("system", "platform", platform.platform(), usable=True),
    ), ()


def check_packages(facts: Facts) -> Finding:
    """Versions of every package that an extra installs, without importing one."""
    found, faults = [], []
    oldest = {name: version for extra in EXTRAS.values() for name, version in extra.items()}
    for name, minimum in oldest.items():
        version = _version(name)
        new_enough = _release(version) >= _release(minimum)
        found.append(Fact("package", name, version or "not installed", usable=new_enough))
        if version and not new_enough:
            what = (
                f"{name} {version} is older than {minimum}, the oldest that vit-export works with"
            )
            faults.append(Fault(what, f"pip install --upgrade '{name}>={minimum}'"))
    return tuple(found), tuple(faults)


def check_nvidia(facts: Facts) -> Finding:
    """NVIDIA's driver and GPUs, as the driver itself describes them."""
    answer = in_child(probe_nvidia)
    if answer.get("absent"):
        return (Fact("gpu", "driver", answer["absent"], usable=False),), ()
    if "error" in answer:
        what = f"the NVIDIA driver is installed and does not work: {answer['error']}"
        remedy = "sudo reboot  # after a driver update; in a container: start it with --gpus all"
        return (Fact("gpu", "driver", answer["error"], usable=False),), (Fault(what, remedy),)
    found = [Fact("gpu", "driver", f"CUDA {answer['cuda']}", usable=bool(answer["gpus"]))]
    found += [Fact("gpu", f"GPU {n}", text, usable=True) for n, text in enumerate(answer["gpus"])]
    return tuple(found), ()


def check_onnxruntime(facts: Facts) -> Finding:
    """Which wheels of ONNX Runtime are installed, and which of its providers really run."""
    owners = importlib.metadata.packages_distributions().get("onnxruntime", ())
    wheels = sorted({name.lower().replace("_", "-") for name in owners if name})
    extra = "gpu" if _gpu(facts) else "cpu"
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
        expected = provider == "CPUExecutionProvider" or (
            provider == "CUDAExecutionProvider" and _gpu(facts)
        )
        if error and expected:
            faults.append(_provider_fault(provider, error, built["cuda"], facts))
    return tuple(found), tuple(faults)


def _no_runtime(what: str, remedy: str) -> Finding:
    return (Fact("provider", RUNTIME, what, usable=False),), (Fault(what, remedy),)


def _provider_fault(provider: str, error: str, wheel_cuda: str, facts: Facts) -> Fault:
    what = f"{provider} does not run: {error}"
    if provider == "CPUExecutionProvider":
        return Fault(what, "pip install --force-reinstall 'vit-export[cpu]'")
    driver_cuda = _find(facts, "gpu", "driver").value.removeprefix("CUDA ")
    if _release(driver_cuda)[:1] < _release(wheel_cuda)[:1]:
        what = f"{what}; its wheel is built for CUDA {wheel_cuda}, the driver is for {driver_cuda}"
        return Fault(what, f"update the NVIDIA driver to one for CUDA {wheel_cuda} or newer")
    return Fault(what, "pip install --upgrade 'vit-export[gpu]'")


# New checks go here: libraries of CUDA, cuDNN and TensorRT, say. Each sees the facts before it.
CHECKS: tuple[Check, ...] = (check_system, check_packages, check_nvidia, check_onnxruntime)


def can_run_on_cpu(facts: Facts) -> Ability:
    """`validate`, and `predict` from arrays, with `--provider cpu`."""
    return _provider_ability(facts, "run on the CPU", "CPUExecutionProvider", "cpu")


def can_read_images(facts: Facts) -> Ability:
    """`predict` from image files."""
    return _package_ability(facts, "read image files", {"pillow": ""}, "cpu")


def can_run_on_cuda(facts: Facts) -> Ability:
    """`--provider cuda`."""
    if not _gpu(facts):
        reason = f"no NVIDIA GPU: {_find(facts, 'gpu', 'driver').value}"
        return Ability("run on CUDA", possible=False, reason=reason)
    return _provider_ability(facts, "run on CUDA", "CUDAExecutionProvider", "gpu")


def can_export(facts: Facts) -> Ability:
    """`onnx`: torch to ONNX, and the gate, which runs what was exported."""
    ability = _package_ability(facts, "export from torch", EXTRAS["export"], "export")
    cpu = can_run_on_cpu(facts)
    if ability.possible and not cpu.possible:
        return dataclasses.replace(cpu, name=ability.name)
    return ability


def can_build_engines(facts: Facts) -> Ability:
    """`engine`: TensorRT builds on the GPU it builds for; TensorRT-RTX needs none."""
    name = "build TensorRT engines"
    if _find(facts, "package", "tensorrt-rtx").usable:
        return Ability(name, possible=True)
    if _gpu(facts):
        return _package_ability(facts, name, EXTRAS["tensorrt"], "tensorrt")
    return _package_ability(facts, name, EXTRAS["tensorrt-rtx"], "tensorrt-rtx")


ABILITIES: tuple[Callable[[Facts], Ability], ...] = (
    can_run_on_cpu,
    can_read_images,
    can_run_on_cuda,
    can_export,
    can_build_engines,
)


def _package_ability(facts: Facts, name: str, packages: dict[str, str], extra: str) -> Ability:
    lacking = [p for p in packages if not _find(facts, "package", p).usable]
    if not lacking:
        return Ability(name, possible=True)
    reason = "not installed or too old: " + ", ".join(lacking)
    return Ability(name, possible=False, reason=reason, remedy=f"pip install 'vit-export[{extra}]'")


def _provider_ability(facts: Facts, name: str, provider: str, extra: str) -> Ability:
    fact = _find(facts, "provider", provider)
    if fact.usable:
        return Ability(name, possible=True)
    broken = [fact.value for fact in facts if (fact.topic, fact.name) == ("provider", RUNTIME)]
    if broken:
        return Ability(name, possible=False, reason=broken[0], remedy="mend the fault first")
    remedy = f"pip install 'vit-export[{extra}]'"
    if extra == "gpu" and _find(facts, "package", "onnxruntime").usable:
        remedy = f"pip uninstall -y onnxruntime && {remedy}"
    return Ability(name, possible=False, reason=f"{provider}: {fact.value}", remedy=remedy)


def _find(facts: Facts, topic: str, name: str) -> Fact:
    matches = (fact for fact in facts if (fact.topic, fact.name) == (topic, name))
    return next(matches, Fact(topic, name, "not available", usable=False))


def _gpu(facts: Facts) -> bool:
    return _find(facts, "gpu", "driver").usable


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: `"2.13.0+cpu"` is (2, 13, 0)."""
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def render(diagnosis: Diagnosis) -> str:
    """The diagnosis as a plain text table."""
    lines: list[str] = []
    titles = {"system": "System", "package": "Packages", "gpu": "GPU", "provider": "Providers"}
    for topic, title in titles.items():
        facts = [fact for fact in diagnosis.facts if fact.topic == topic]
        width = max((len(fact.name) for fact in facts), default=0)
        lines += ["", title] if facts else []
        lines += [f"  {fact.name:{width}}  {fact.value}" for fact in facts]
    lines += ["", "What can be done here"]
    width = max(len(ability.name) for ability in diagnosis.abilities)
    for ability in diagnosis.abilities:
        lines.append(f"  {ability.name:{width}}  {'yes' if ability.possible else 'no'}")
        lines += [f"    {text}" for text in (ability.reason, ability.remedy) if text]
    lines += ["", "Faults" if diagnosis.faults else "No faults."]
    for fault in diagnosis.faults:
        lines += [f"  {fault.what}", f"    mend: {fault.remedy}"]
    return "\n".join(lines[1:])
