"""DLPack by ctypes: share tensors with other libraries without a copy, in both directions.

Structures and rules of ownership: dlpack.h 0.8 (DLManagedTensor) and the Python specification,
https://dmlc.github.io/dlpack/latest/python_spec.html.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vit_export.errors import InputError

CPU, CUDA = 1, 2  # DLDeviceType
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}  # DLDataTypeCode
_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (
    ("dl_tensor", _Tensor),
    ("manager_ctx", ctypes.c_void_p),
    ("deleter", _Deleter),
)
_CapsuleDestructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _CapsuleDestructor)


@dataclass(frozen=True, kw_only=True)
class View:
    """A contiguous tensor of another library, shared without a copy."""

    address: int  # of its first element
    shape: tuple[int, ...]
    dtype: str  # numpy's name, e.g. "float32"
    device: tuple[int, int]  # DLDeviceType, ordinal
    owner: Any  # keeps the memory alive


def view(tensor: Any, *, stream: int | None = None) -> View:
    """Share a tensor that supports DLPack.

    Its library makes `stream`, the CUDA stream that will read the tensor, wait for the data.

    Raises:
        InputError: It cannot be used without a copy.
    """
    try:
        capsule = tensor.__dlpack__(stream=stream) if stream is not None else tensor.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"a {type(tensor).__name__} cannot be used without a copy "
            f"({str(error).strip().splitlines()[0]})",
            hint="pass x.detach().contiguous()",
        ) from error
    managed = ctypes.cast(_get_pointer(capsule, _NAME), ctypes.POINTER(_ManagedTensor)).contents
    shared = managed.dl_tensor
    shape = tuple(shared.shape[: shared.ndim])
    if shared.strides and not _is_contiguous(shape, shared.strides[: shared.ndim]):
        raise InputError(
            f"a {type(tensor).__name__} of shape {shape} is not contiguous",
            hint="pass x.contiguous()",
        )
    return View(
        address=(shared.data or 0) + shared.byte_offset,
        shape=shape,
        dtype=f"{_CODES.get(shared.dtype.code, '?')}{shared.dtype.bits}",
        device=(shared.device.device_type, shared.device.device_id),
        owner=capsule,  # still named "dltensor": its destructor calls the deleter
    )


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether elements are in row-major order without gaps."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


_shared: dict[int, tuple[Any, ...]] = {}  # tensors in use by consumers, until their deleter runs
_tickets = itertools.count(1)


def _forget(managed: Any) -> None:
    """Release a tensor; the deleter that a consumer calls when it is done."""
    _shared.pop(managed.contents.manager_ctx, None)


def _destroy(capsule: int) -> None:
    """Release the tensor of a capsule that Python deletes before a consumer used it."""
    if _is_valid(capsule, _NAME):
        _forget(ctypes.cast(_pointer_of(capsule, _NAME), ctypes.POINTER(_ManagedTensor)))


_deleter, _capsule_destructor = _Deleter(_forget), _CapsuleDestructor(_destroy)


def capsule_of(
    address: int, shape: Sequence[int], *, dtype: str, device: tuple[int, int], owner: Any
) -> Any:
    """Return a capsule of a contiguous tensor, which other libraries import by `from_dlpack`.

    The arguments are the fields of `View`; `owner` lives until the other library is done.
    """
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    managed = _ManagedTensor()
    tensor = managed.dl_tensor
    tensor.data = address
    tensor.device.device_type, tensor.device.device_id = device
    tensor.ndim = len(shape)
    kind = dtype.rstrip("0123456789")
    tensor.dtype.code = next(code for code, name in _CODES.items() if name == kind)
    tensor.dtype.bits, tensor.dtype.lanes = int(dtype[len(kind) :]), 1
    tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    ticket = next(_tickets)
    managed.manager_ctx = ticket
    managed.deleter = _deleter
    _shared[ticket] = (managed, sizes, owner)
    return _new_capsule(ctypes.addressof(managed), _NAME, _capsule_destructor)
