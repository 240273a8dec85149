"""The system, and the packages that vit-export can use."""

from __future__ import annotations

import platform
import sys

from vit_export import __version__
from vit_export.doctor.words import Fact, Facts, Fault, Finding, release
from vit_export.nvidia import version_of

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
        version = version_of(name)
        new_enough = release(version) >= release(minimum)
        found.append(Fact("package", name, version or "not installed", usable=new_enough))
        if version and not new_enough:
            what = (
                f"{name} {version} is older than {minimum}, the oldest that vit-export works with"
            )
            faults.append(Fault(what, f"pip install --upgrade '{name}>={minimum}'"))
    return tuple(found), tuple(faults)
