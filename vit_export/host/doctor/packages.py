"""The system, and the packages that vit-export can use."""

from __future__ import annotations

import platform
import sys

from vit_export import __version__
from vit_export.host.doctor.types import Fact, Facts, Fault, Finding
from vit_export.host.nvidia import TENSORRT_RTX_WHEELS, TENSORRT_WHEELS, version_of, version_tuple

# Extra -> distribution -> oldest version that works; "" is what every installation has.
EXTRAS: dict[str, dict[str, str]] = {
    "": {
        "numpy": "1.26",
        "click": "8.1",
        "cloup": "3.0.5",
        "msgspec": "0.18.5",
        "packaging": "23.0",
        "rich": "13.7",
    },
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
    "tensorrt": {"tensorrt": "10.3", "cuda-bindings": "12.9"},
    "tensorrt-rtx": {"tensorrt-rtx": "1.4", "cuda-bindings": "12.9"},
}
# Distribution -> those that bring the same module.
WHEELS = {"tensorrt": TENSORRT_WHEELS, "tensorrt-rtx": TENSORRT_RTX_WHEELS}


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
    oldest = {name: version for extra in EXTRAS.values() for name, version in extra.items()}
    findings = [_check_package(name, minimum) for name, minimum in oldest.items()]
    faults = tuple(fault for _, found in findings for fault in found)
    return tuple(fact for fact, _ in findings), faults


def _check_package(name: str, minimum: str) -> tuple[Fact, tuple[Fault, ...]]:
    wheel = next((wheel for wheel in WHEELS.get(name, ()) if version_of(wheel)), name)
    version = version_of(wheel)
    new_enough = version_tuple(version) >= version_tuple(minimum)
    fact = Fact("package", name, version or "not installed", usable=new_enough)
    if new_enough or not version:
        return fact, ()
    what = f"{wheel} {version} is older than {minimum}, the oldest that vit-export works with"
    return fact, (Fault(what, f"pip install --upgrade '{wheel}>={minimum}'"),)
