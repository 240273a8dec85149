"""Arrays of .npz archives, as torch tensors; pickled Python objects are not read."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_export.errors import CheckpointError

BFLOAT16 = np.dtype("V2")  # numpy lacks bfloat16, and keeps two raw bytes


def npz_shapes(path: Path) -> dict[str, Tensor]:
    """Return meta tensors by name, from the arrays' headers."""
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as data:
                    shape, dtype = _header(data)
                if dtype.hasobject:
                    raise ValueError("it holds pickled Python objects, which are not read")
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"array {name!r} is shorter than its shape {shape}")
                kind = _to_torch(np.empty(0, dtype)).dtype
                tensors[name] = torch.empty(shape, dtype=kind, device="meta")
    except (ValueError, TypeError, zipfile.BadZipFile) as error:
        what = "is damaged, or not an archive of plain arrays"
        raise CheckpointError(f"{path} {what}: {error}") from error
    return tensors


def read_npz(path: Path, name: str) -> Tensor:
    """Read one array."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _to_torch(arrays[name])
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CheckpointError(f"{path}: array {name!r} cannot be read: {error}") from error


def _to_torch(array: NDArray[Any]) -> Tensor:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(array, order="C"))


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    formats = np.lib.format
    old = formats.read_magic(member) == (1, 0)
    read = formats.read_array_header_1_0 if old else formats.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype
