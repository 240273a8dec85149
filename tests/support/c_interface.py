"""The C interface of the C++ library, called through ctypes as another language would."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.preprocess import Preprocess

HANDLE = c.c_void_p
STATUS = c.c_void_p
FUNCTIONS = (  # of `vit_export_api`, in order: name, result, arguments
    ("status_code", c.c_int, (STATUS,)),
    ("status_message", c.c_char_p, (STATUS,)),
    ("status_hint", c.c_char_p, (STATUS,)),
    ("release_status", None, (STATUS,)),
    ("create_model", STATUS, (c.c_char_p, c.c_void_p, c.c_void_p)),
    ("release_model", None, (HANDLE,)),
    ("get_manifest", STATUS, (HANDLE, c.c_void_p)),
    ("get_runtime", STATUS, (HANDLE, c.c_void_p)),
    ("classify", STATUS, (HANDLE, c.c_void_p, c.c_size_t, c.c_int32, c.c_void_p)),
    ("get_predictions", STATUS, (HANDLE, c.c_size_t, c.c_void_p, c.c_void_p)),
    ("release_predictions", None, (HANDLE,)),
    ("embed", STATUS, (HANDLE, c.c_void_p, c.c_size_t, c.c_int32, c.c_void_p)),
    ("run", STATUS, (HANDLE, c.c_void_p, c.c_size_t, c.c_uint32, c.c_uint32, c.c_void_p)),
    ("prepare", STATUS, (c.c_void_p, c.c_void_p, c.c_size_t, c.c_void_p)),
    ("get_output", STATUS, (HANDLE, c.c_size_t, c.c_void_p)),
    ("count_outputs", c.c_size_t, (HANDLE,)),
    ("release_outputs", None, (HANDLE,)),
    ("selftest", STATUS, (HANDLE, c.c_char_p, c.c_void_p)),
    ("get_selftest", STATUS, (HANDLE, c.c_void_p)),
    ("release_selftest", None, (HANDLE,)),
)


class _Api(c.Structure):
    _fields_ = (
        ("version", c.c_uint32),
        ("library_version", c.c_char_p),
        *((name, c.CFUNCTYPE(result, *arguments)) for name, result, arguments in FUNCTIONS),
    )


class Image(c.Structure):
    """`vit_export_image`."""

    _fields_ = (
        ("pixels", c.c_void_p),
        ("width", c.c_uint32),
        ("height", c.c_uint32),
        ("channels", c.c_uint32),
        ("stride", c.c_size_t),
    )


class _Preprocess(c.Structure):
    _fields_ = (
        ("struct_size", c.c_size_t),
        ("height", c.c_uint32),
        ("width", c.c_uint32),
        ("crop_pct", c.c_double),
        ("interpolation", c.c_char_p),
        ("crop_mode", c.c_char_p),
        ("color", c.c_char_p),
        ("mean", c.POINTER(c.c_double)),
        ("std", c.POINTER(c.c_double)),
        ("channels", c.c_uint32),
    )


class _Tensor(c.Structure):
    _fields_ = (
        ("name", c.c_char_p),
        ("shape", c.POINTER(c.c_int64)),
        ("rank", c.c_size_t),
        ("count", c.c_size_t),
        ("dtype", c.c_int),
        ("data", c.c_void_p),
    )


class StatusError(Exception):
    """A call returned a status."""

    def __init__(self, code: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Library:
    """The shared library."""

    def __init__(self, path: Path) -> None:
        self.exported = c.CDLL(str(path))
        self.exported.vit_export_get_api.restype = c.POINTER(_Api)
        self.exported.vit_export_get_api.argtypes = (c.c_uint32,)
        self.api = self.exported.vit_export_get_api(1).contents

    def call(self, name: str, *arguments: object) -> None:
        """Call a function; raise StatusError where it returns a status."""
        status = getattr(self.api, name)(*arguments)
        if status:
            code = self.api.status_code(status)
            message = self.api.status_message(status).decode()
            hint = self.api.status_hint(status).decode()
            self.api.release_status(status)
            raise StatusError(code, message, hint)

    def prepare(
        self,
        images: Sequence[NDArray[np.uint8]],
        preprocess: Preprocess,
        *,
        interpolation: str = "",
    ) -> NDArray[np.float32]:
        """Prepare images; `interpolation` may be one that no manifest can name."""
        channels = len(preprocess.mean)
        how = _Preprocess(
            c.sizeof(_Preprocess),
            *preprocess.size,
            preprocess.crop_pct,
            (interpolation or preprocess.interpolation).encode(),
            preprocess.crop_mode.encode(),
            preprocess.color.encode(),
            (c.c_double * channels)(*preprocess.mean),
            (c.c_double * channels)(*preprocess.std),
            channels,
        )
        outputs = c.c_void_p()
        self.call("prepare", c.byref(how), views(images), len(images), c.byref(outputs))
        tensor = _Tensor()
        self.call("get_output", outputs, 0, c.byref(tensor))
        data = c.cast(tensor.data, c.POINTER(c.c_float))
        values = np.ctypeslib.as_array(data, (tensor.count,)).reshape(tensor.shape[: tensor.rank])
        copied = values.copy()
        self.api.release_outputs(outputs)
        return copied


def views(images: Sequence[NDArray[np.uint8]]) -> c.Array[Image]:
    """Return C structs that point to the images, (H, W, C) with pixels side by side in a row."""
    all_views = (Image * len(images))()
    for view, image in zip(all_views, images, strict=True):
        height, width, channels = image.shape
        assert image.strides[1:] == (channels, 1)
        view.pixels = image.ctypes.data
        view.width, view.height, view.channels = width, height, channels
        view.stride = image.strides[0]
    return all_views
