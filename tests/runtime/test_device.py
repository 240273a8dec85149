"""The CUDA runtime on a machine without a GPU."""

from __future__ import annotations

import pytest

from vit_export.errors import ProviderError
from vit_export.runtime.device import DeviceBuffer, call, current_gpu


def test_a_machine_without_a_gpu_has_none() -> None:
    """No driver at all is no failure."""
    assert current_gpu() is None


def test_a_failing_call_is_named_with_cudas_own_reason() -> None:
    """And with the command that looks further."""
    with pytest.raises(ProviderError, match=r"cudaMalloc failed: .*driver.*vit-export doctor"):
        DeviceBuffer(16)
    with pytest.raises(ProviderError, match="cudaErrorInsufficientDriver"):
        call("cudaGetDevice")
