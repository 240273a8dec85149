"""DLPack with numpy and torch in both directions, on the CPU."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from vit_export.errors import InputError
from vit_export.runtime.tensorrt.dlpack import CPU, capsule_of, view


class Owner:
    """An object whose deletion can be observed."""


class Producer:
    """A tensor of this package, as another library gets it."""

    def __init__(self, array: np.ndarray, owner: object) -> None:
        self.array, self.owner = array, owner

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0

    def __dlpack__(self, **_: object) -> object:
        return capsule_of(
            self.array.ctypes.data, self.array.shape, dtype=self.array.dtype.name,
            device=(CPU, 0), owner=self.owner,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int64"])
def test_a_numpy_array_is_shared_without_a_copy(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = view(array)
    assert (found.address, found.shape, found.dtype) == (array.ctypes.data, (2, 3, 4), dtype)
    assert found.device == (CPU, 0)


def test_the_address_of_a_torch_tensor_includes_its_offset() -> None:
    tensor = torch.arange(24, dtype=torch.float32).reshape(4, 6)[2:]
    found = view(tensor)
    assert (found.address, found.shape) == (tensor.data_ptr(), (2, 6))
    assert view(tensor.to(torch.bfloat16)).dtype == "bfloat16"


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, 6).t(), torch.zeros(4, 6)[:, ::2], torch.zeros(1).expand(4)]
)
def test_a_tensor_that_is_not_contiguous_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(InputError, match="not contiguous"):
        view(tensor)


def test_a_dimension_of_one_may_have_any_stride() -> None:
    assert view(torch.zeros(4, 6).t()[:, :1].t().contiguous()).shape == (1, 6)
    assert view(torch.zeros(6, 1).t()).shape == (1, 6)


def test_a_tensor_with_a_gradient_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match=r"x.detach\(\).contiguous\(\)"):
        view(torch.zeros(2, requires_grad=True))


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    array = np.ones(3)
    watched = weakref.ref(array)
    found = view(array)
    del array
    gc.collect()
    assert watched() is not None
    del found
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("take", [torch.from_dlpack, np.from_dlpack])
def test_other_libraries_import_a_tensor_without_a_copy_and_release_it(take: object) -> None:
    array, owner = np.arange(6, dtype=np.float32).reshape(2, 3), Owner()
    watched = weakref.ref(owner)
    taken = take(Producer(array, owner))  # type: ignore[operator]
    array[1, 2] = 42
    assert tuple(taken.shape) == (2, 3)
    assert float(taken[1, 2]) == 42
    del owner
    gc.collect()
    assert watched() is not None
    del taken
    gc.collect()
    assert watched() is None


def test_a_capsule_that_nobody_imports_is_released() -> None:
    array, owner = np.zeros((), dtype=np.float32), Owner()
    watched = weakref.ref(owner)
    capsule = Producer(array, owner).__dlpack__()
    del owner
    gc.collect()
    assert watched() is not None
    del capsule
    gc.collect()
    assert watched() is None
