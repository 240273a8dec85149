"""Python environments of the peers: made once, kept, and made again when a version here changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NOT_INSTALLED_LINES = 3  # of pip's message, as the reason of a row
TORCH = ("torch==2.13.0", "numpy==2.4.6", "pillow==13.0.0")
ONNX = ("onnx==1.23.2", "onnxruntime==1.32.0")


@dataclass(frozen=True)
class Environment:
    """What is installed in the environment of a peer; the first packages are named in reports."""

    packages: tuple[str, ...]
    # The wheels of timm and torchvision require another torch than the pinned one.
    without_dependencies: tuple[str, ...] = ()

    @property
    def requirements(self) -> tuple[str, ...]:
        """Everything that is pinned here."""
        return self.packages + self.without_dependencies


OURS = "vit-export"  # the environment that runs this script
ENVIRONMENTS = {
    "torch": Environment(
        (*TORCH, *ONNX, "onnxscript==0.7.2", "safetensors==0.8.0", "huggingface_hub==2.4.0",
         "pyyaml==6.0.4"),
        ("timm==1.0.31", "torchvision==0.29.2"),
    ),
    "optimum": Environment(
        (*TORCH, *ONNX, "optimum==2.1.0", "optimum-onnx==0.1.0", "transformers==4.57.6")
    ),
    "transformers": Environment((*TORCH, "transformers==5.23.0"), ("torchvision==0.29.2",)),
    "onnxruntime": Environment(("onnxruntime==1.32.0", "numpy==2.4.6", "pillow==13.0.0")),
    "openvino": Environment(
        ("openvino==2026.4.1", "nncf==3.4.0", "numpy==2.4.6", "pillow==13.0.0")
    ),
}  # fmt: skip


class NotInstalled(Exception):  # noqa: N818
    """An environment cannot be made; the message is the reason."""


def python_of(name: str, folder: Path, borrowed: tuple[str, ...] = ()) -> Path:
    """Return the interpreter of an environment, which is made where it is missing.

    `borrowed` environments are the one of this process: the packages are the same ones.

    Raises:
        NotInstalled: pip failed.
    """
    if name == OURS or name in borrowed:
        return Path(sys.executable)
    environment, place = ENVIRONMENTS[name], folder / name
    python, stamp = place / "bin" / "python", place / "made-from.json"
    wanted = json.dumps([sys.version, *environment.requirements])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"{place}: installing {', '.join(environment.requirements)}", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    _pip(python, *environment.packages)
    if environment.without_dependencies:
        _pip(python, "--no-deps", *environment.without_dependencies)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _pip(python: Path, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalled(f"pip: {' '.join(errors[:NOT_INSTALLED_LINES]) or done.stderr[-300:]}")


def versions_of(name: str) -> dict[str, str]:
    """Return the pinned versions of an environment, by package."""
    return dict(line.split("==") for line in ENVIRONMENTS[name].requirements)
