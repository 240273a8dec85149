"""TF32 kept out of TensorRT, which ONNX Runtime gives no option against it.

TensorRT builds with TF32 unless told otherwise: float32 products then keep 10 of 23 bits of the
mantissa. ONNX Runtime's TensorRT providers know no `use_tf32` (microsoft/onnxruntime, issue
26029); what NVIDIA's libraries obey is an environment variable. TensorRT-RTX 1.7 reads it at every
build (tried: its plans are then the same with the TF32 flag and without). The provider `tensorrt`
was seen to keep the value that its first session found (same issue), so the variable is set before
CUDA is in use, or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path

from vit_export.errors import ProviderError

TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"  # "0": no NVIDIA library takes TF32
WITHOUT_AN_OPTION = ("tensorrt", "tensorrt-rtx")
DRIVER = "libcuda.so"  # mapped by whatever uses CUDA
MAPPED_FILES = Path("/proc/self/maps")


def forbid_tf32(provider: str, precision: str) -> None:
    """Tell NVIDIA's libraries in this process to leave TF32 alone, where only that is left.

    A variable that is set stays as it is: with `NVIDIA_TF32_OVERRIDE=1` somebody wants TF32, and
    the gate measures it.

    Args:
        provider: What is about to run an artifact.
        precision: Of the artifact; narrower ones than fp32 lose little by TF32 in what they keep.

    Raises:
        ProviderError: CUDA is in use in this process already, and the artifact is fp32.
    """
    if provider not in WITHOUT_AN_OPTION or TF32_VARIABLE in os.environ:
        return
    if not cuda_is_loaded():
        os.environ[TF32_VARIABLE] = "0"
    elif precision == "fp32":
        raise ProviderError(
            f"provider {provider!r} computes float32 products in TF32 (10 of 23 bits) unless "
            f"{TF32_VARIABLE}=0 is in the environment before CUDA is used, and something in this "
            f"process has used it already; start the process with {TF32_VARIABLE}=0, or with "
            f"{TF32_VARIABLE}=1 to let it"
        )


def cuda_is_loaded() -> bool:
    """Whether NVIDIA's driver library is in this process; unknown, and no, outside of Linux."""
    return MAPPED_FILES.is_file() and DRIVER in MAPPED_FILES.read_text(errors="replace")
