"""The CUDA runtime on a machine without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cuda.bindings import runtime as cudart
from cuda.core._utils.cuda_utils import CUDAError

from vit_export.errors import ProviderError, UsageError
from vit_export.runtime.tensorrt import cuda as device
from vit_export.runtime.tensorrt.cuda import current_gpu, named_failures


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    assert current_gpu() is None


def test_a_failure_of_cuda_has_cudas_own_reason() -> None:
    with (
        pytest.raises(ProviderError, match=r"CUDA: out of memory\nhint: .*vit-export doctor"),
        named_failures(),
    ):
        raise CUDAError("out of memory")


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (12040, r"supports CUDA 12\.4 at most, .* needs CUDA 13\.5\nhint: update the driver, or "
                r"install packages for CUDA 12: pip install 'cuda-bindings<13'; see"),
        (11080, r"supports CUDA 11\.8 at most, .*\nhint: update the driver; see: vit-export doct"),
    ],
)  # fmt: skip
def test_a_driver_that_is_too_old_is_not_a_machine_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, driver: int, reason: str
) -> None:
    """CUDA's status is the same for both; only the driver's version differs."""
    success = cudart.cudaError_t.cudaSuccess
    fake = SimpleNamespace(
        cudaError_t=cudart.cudaError_t,
        cudaGetDeviceCount=lambda: (cudart.cudaError_t.cudaErrorInsufficientDriver, None),
        cudaDriverGetVersion=lambda: (success, driver),
        cudaRuntimeGetVersion=lambda: (success, 13050),
    )
    monkeypatch.setattr(device, "cudart", fake)
    with pytest.raises(ProviderError, match=reason):
        current_gpu()


def test_a_driver_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = cudart.cudaError_t.cudaErrorInitializationError
    fake = SimpleNamespace(
        cudaError_t=cudart.cudaError_t, cudaGetDeviceCount=lambda: (broken, None)
    )
    monkeypatch.setattr(device, "cudart", fake)
    with pytest.raises(ProviderError, match="cudaErrorInitializationError"):
        current_gpu()


def test_a_gpu_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    success = cudart.cudaError_t.cudaSuccess
    fake = SimpleNamespace(cudaError_t=cudart.cudaError_t, cudaGetDeviceCount=lambda: (success, 2))
    monkeypatch.setattr(device, "cudart", fake)
    with pytest.raises(UsageError, match="device=2: this machine has the GPUs 0 to 1"):
        current_gpu(2)
