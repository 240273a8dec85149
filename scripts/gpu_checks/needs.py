"""Requirements of the checks; a check whose requirement is missing is not run."""

from __future__ import annotations

import importlib.util

from gpu_checks.outcome import NotRunError

BF16_CAPABILITY = (8, 0)  # Ampere


def need(*modules: str) -> None:
    """Raise NotRunError unless all of these modules are installed; imports none of them."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        raise NotRunError(f"not installed: {', '.join(lacking)}")


def need_cuda_wheel() -> None:
    """Raise NotRunError unless the installed ONNX Runtime was compiled with CUDA."""
    need("numpy", "onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotRunError("not installed: onnxruntime-gpu (the wheel for the CPU is)")


def need_tensorrt_provider() -> None:
    """Raise NotRunError unless the TensorRT that ONNX Runtime is linked with is installed."""
    need_cuda_wheel()
    from vit_export.host.nvidia import tensorrt_conflict

    if conflict := tensorrt_conflict():
        raise NotRunError(": ".join(conflict))


def need_rtx_plugin() -> None:
    """Raise NotRunError unless the plugin is installed and supports the GPU."""
    need("numpy", "onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx")
    need_rtx_gpu()


def need_tensorrt() -> None:
    """Raise NotRunError unless TensorRT is installed, and CUDA for Python."""
    need("numpy", "tensorrt", "cuda")


def need_tensorrt_rtx() -> None:
    """Raise NotRunError unless TensorRT-RTX and CUDA for Python are here, and the GPU fits."""
    need("numpy", "tensorrt_rtx", "cuda")
    need_rtx_gpu()


def need_rtx_gpu() -> None:
    """Raise NotRunError unless TensorRT-RTX supports this GPU."""
    from vit_export.host.doctor.abilities import supported_by_rtx

    found = gpu_capability()
    if not supported_by_rtx(found):
        raise NotRunError(f"TensorRT-RTX does not support compute capability {_shown(found)}")


def need_kernels_for(precision: str) -> None:
    """Raise NotRunError where the GPU is too old for a precision; an unknown GPU is tried."""
    if precision == "bf16" and (0, 0) < gpu_capability() < BF16_CAPABILITY:
        raise NotRunError(
            f"BF16 needs compute capability {_shown(BF16_CAPABILITY)}, and the GPU here has "
            f"{_shown(gpu_capability())}"
        )


def gpu_capability() -> tuple[int, int]:
    """Return the compute capability of the first GPU; (0, 0) where it is unknown."""
    from vit_export.host.doctor.checks import capability, check_gpu, run_checks

    return capability(run_checks(check_gpu)[0])


def _shown(found: tuple[int, int]) -> str:
    return ".".join(map(str, found))


PROVIDER_NEEDS = {
    "cuda": need_cuda_wheel,
    "tensorrt": need_tensorrt_provider,
    "tensorrt-rtx": need_rtx_plugin,
}
BACKEND_NEEDS = {"tensorrt": need_tensorrt, "tensorrt-rtx": need_tensorrt_rtx}
