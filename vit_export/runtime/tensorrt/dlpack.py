"""DLPack capsules by ctypes: a tensor of another library where it lies, and one of ours for it.

Structures and the rules of ownership are those of dlpack.h 0.8 (DLManagedTensor) and of the
Python specification, https://dmlc.github.io/dlpack/latest/python_spec.html.
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
    """A tensor of another library, where it lies.

    Attributes:
        address: Of its first element.
        shape: Its shape; the elements lie one after the other.
        dtype: numpy's name, e.g. `"float32"`.
        device: `(DLDeviceType, ordinal)`.
        owner: Keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    owner: Any


def view(tensor: Any, *, stream: int | None = None) -> View:
    """Look at a tensor that speaks dlpack.

    Args:
        tensor: Has `__dlpack__`.
        stream: CUDA stream on which it will be read; its library makes it wait for the data.

    Raises:
        InputError: It cannot be taken where it lies.
    """
    try:
        capsule = tensor.__dlpack__(stream=stream) if stream is not None else tensor.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"a {type(tensor).__name__} cannot be taken where it lies "
            f"({str(error).strip().splitlines()[0]}); give it as x.detach().contiguous()"
        ) from error
    managed = ctypes.cast(_get_pointer(capsule, _NAME), ctypes.POINTER(_ManagedTensor)).contents
    found = managed.dl_tensor
    shape = tuple(found.shape[index] for index in range(found.ndim))
    if found.strides and not _is_contiguous(shape, [found.strides[i] for i in range(found.ndim)]):
        raise InputError(
            f"a {type(tensor).__name__} of shape {shape} is not contiguous; give x.contiguous()"
        )
    return View(
        address=(found.data or 0) + found.byte_offset,
        shape=shape,
        dtype=f"{_CODES.get(found.dtype.code, '?')}{found.dtype.bits}",
        device=(found.device.device_type, found.device.device_id),
        owner=capsule,  # still named "dltensor": its destructor calls the deleter
    )


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie one after the other, last dimension first."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


_handed_out: dict[int, tuple[Any, ...]] = {}  # what a consumer holds, until its deleter is called
_tickets = itertools.count(1)


def _forget(managed: Any) -> None:
    """What a consumer calls when it is done."""
    _handed_out.pop(managed.contents.manager_ctx, None)


def _destroy(capsule: int) -> None:
    """What Python calls for a capsule that nobody refers to; if nobody consumed it, forget it."""
    if _is_valid(capsule, _NAME):
        _forget(ctypes.cast(_pointer_of(capsule, _NAME), ctypes.POINTER(_ManagedTensor)))


_deleter, _capsule_destructor = _Deleter(_forget), _CapsuleDestructor(_destroy)


def capsule_of(
    address: int, shape: Sequence[int], *, dtype: str, device: tuple[int, int], owner: Any
) -> Any:
    """A capsule that another library takes with its `from_dlpack`.

    Args:
        address: Of the first element; elements lie one after the other.
        shape: The shape.
        dtype: numpy's name.
        device: `(DLDeviceType, ordinal)`.
        owner: Kept alive until the consumer is done.
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
    _handed_out[ticket] = (managed, sizes, owner)
    return _new_capsule(ctypes.addressof(managed), _NAME, _capsule_destructor)
