"""Tensors in a file, by name: what kind of file it is, shapes first, data one at a time.

The content says what a file is, never its name. Nothing in a file is executed: pickles go
through torch's restricted unpickler, `.npz` archives are read without pickled objects.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_export.checkpoint.pickles import load_pickled, select_state_dict
from vit_export.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors" + INDEX_SUFFIX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX_SUFFIX,
)
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HEAD_BYTES = 512
PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5))
# put before every name by DataParallel, torch.compile, Lightning and transformers' timm wrapper
PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.", "net.")


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """Named tensors whose data are read one at a time.

    Attributes:
        path: What was opened: a file, or the index of several.
        parts: The files that hold the data.
        tensors: Name to a meta tensor: shape and dtype without data.
        read: Name to the data; may share memory with the file.
        metadata: Text the file carries (safetensors only).
        aside: Entries that hold no weights of this model, such as an optimizer's.
        notes: What was chosen while opening, e.g. which of two sets of weights.
    """

    path: Path
    parts: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def sha256(self) -> str:
        """Hash of the data files, in order, as hexadecimal digits."""
        digest = hashlib.sha256()
        buffer = bytearray(1 << 20)
        for part in self.parts:
            with part.open("rb") as file:
                while count := file.readinto(buffer):
                    digest.update(memoryview(buffer)[:count])
        return digest.hexdigest()


def open_tensors(path: Path) -> TensorFile:
    """Open a weights file, a folder of one model, or the index of a sharded file.

    Raises:
        CheckpointError: Not there, empty, damaged, or of a kind that is not understood.
    """
    try:
        path = _in_folder(path) if path.is_dir() else path
        sharded = path.name.endswith(INDEX_SUFFIX)
        return _without_prefixes(_open_shards(path) if sharded else _open_one(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read weights: there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read weights from {path}: {error.strerror}") from error


def _without_prefixes(file: TensorFile) -> TensorFile:
    """Take off the prefixes that every name in a file has."""
    names = {name: name for name in file.tensors}
    while prefix := next(
        (p for p in PREFIXES if names and all(name.startswith(p) for name in names)), ""
    ):
        names = {name[len(prefix) :]: full for name, full in names.items()}
    return dataclasses.replace(
        file,
        tensors={name: file.tensors[full] for name, full in names.items()},
        read=lambda name: file.read(names[name]),
    )


def _in_folder(folder: Path) -> Path:
    """The weights in a folder: under the hub's names, or the only file of a known kind."""
    for name in FOLDER_NAMES:
        if (folder / name).exists():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES and p.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder} holds several weights files: {', '.join(p.name for p in found)}; "
            "name the one to load"
        )
    raise CheckpointError(
        f"{folder} holds no weights: expected one of {', '.join(FOLDER_NAMES)}, or one file that "
        f"ends in {', '.join(WEIGHT_SUFFIXES)}"
    )


def _open_one(path: Path) -> TensorFile:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): download or save it again")
    if zipfile.is_zipfile(path) and head[:2] == b"PK":
        return _open_zip(path)
    if head[:4] == b"PK\x03\x04":
        raise _truncated(path, "a zip archive (.pth, .pt, .bin or .npz) without its end")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _open_safetensors(path)
    if head[:2] in PICKLE_STARTS:
        return _open_pickle(path, mmap=False)
    raise _unknown_kind(path, head)


def _open_zip(path: Path) -> TensorFile:
    """A zip archive: of torch.save, of numpy, or of neither."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        return _open_npz(path)
    if any(name.endswith(("/constants.pkl", "/archive_format")) or "/code/" in name
           for name in names):  # fmt: skip
        raise CheckpointError(
            f"{path} is a TorchScript or torch.export archive: a program, not only weights. "
            "Save the weights of the model it was made from: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    if any(name.endswith("/data.pkl") for name in names):
        return _open_pickle(path, mmap=True)
    raise CheckpointError(
        f"{path} is a zip archive without weights of torch or numpy in it (it holds "
        f"{', '.join(names[:3]) or 'nothing'}); expected a .safetensors, .pth, .bin or .npz file"
    )


def _open_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: _shape_of(part) for name, part in slices.items()}
    except SafetensorError as error:
        raise _truncated(path, f"safetensors cannot read it: {error}") from error

    def read(name: str) -> Tensor:
        # opened anew for each tensor: the pages that were mapped are given back
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return TensorFile(path=path, parts=(path,), tensors=tensors, read=read, metadata=metadata)


SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


def _shape_of(part: Any) -> Tensor:
    # whatever is no number with a fraction is refused as soon as the model needs it
    dtype = SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8)
    return torch.empty(part.get_shape(), dtype=dtype, device="meta")


def shard_names(index: Path) -> list[str]:
    """The files that an index such as model.safetensors.index.json names.

    Raises:
        CheckpointError: It is no such index, or names files outside its own folder.
    """
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    """Name of each tensor to the file that holds it."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        outside = sorted(name for name in weight_map.values() if Path(name).name != name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not the index of a sharded file (no 'weight_map': {error!r})"
        ) from error
    if outside:
        raise CheckpointError(f"{index} points outside its own folder: {', '.join(outside)}")
    return weight_map


def _open_shards(index: Path) -> TensorFile:
    """All files of an index as one."""
    weight_map, names = _weight_map(index), shard_names(index)
    absent = [name for name in names if not (index.parent / name).exists()]
    if absent:
        raise CheckpointError(
            f"{index.name} names {len(names)} files, {len(absent)} are not beside it: "
            f"{', '.join(absent)}; download them too"
        )
    files = {name: _open_one(index.parent / name) for name in names}
    lacking = [t for t, name in weight_map.items() if t not in files[name].tensors]
    if lacking:
        raise CheckpointError(
            f"{index.name} names tensors that its files do not hold: {', '.join(lacking)}"
        )
    return TensorFile(
        path=index,
        parts=tuple(file.path for file in files.values()),
        tensors={t: files[name].tensors[t] for t, name in weight_map.items()},
        read=lambda tensor: files[weight_map[tensor]].read(tensor),
    )


def _open_npz(path: Path) -> TensorFile:
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as data:
                    shape, dtype = _npy_header(data)
                name = member.filename.removesuffix(".npy")
                tensors[name] = torch.empty(shape, dtype=_torch_dtype(dtype), device="meta")
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"array {name!r} is shorter than its shape {shape}")
    except (ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is damaged, or not an archive of plain arrays: {error}"
        ) from error

    def read(name: str) -> Tensor:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                array = arrays[name]
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CheckpointError(f"{path}: array {name!r} cannot be read: {error}") from error
        if array.dtype == np.dtype("V2"):  # numpy has no bfloat16: it keeps two raw bytes
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.asarray(array, order="C"))

    return TensorFile(path=path, parts=(path,), tensors=tensors, read=read)


def _npy_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    reader = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = reader(member)
    return shape, dtype


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are not read")
    if dtype == np.dtype("V2"):
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _open_pickle(path: Path, *, mmap: bool) -> TensorFile:
    selected = select_state_dict(load_pickled(path, mmap=mmap), source=str(path))
    return TensorFile(
        path=path,
        parts=(path,),
        tensors={name: tensor.to("meta") for name, tensor in selected.state_dict.items()},
        read=selected.state_dict.__getitem__,
        aside=selected.aside,
        notes=selected.notes,
    )


def _truncated(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or damaged ({found}; {os.path.getsize(path)} bytes): "
        "download or save it again"
    )


SIGNATURES: Sequence[tuple[bytes, str]] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves; fetch them "
                                 "with: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow)"),
    (b"\x93NUMPY", "a single numpy array (.npy)"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
)  # fmt: skip


def _unknown_kind(path: Path, head: bytes) -> CheckpointError:
    kind = next((kind for signature, kind in SIGNATURES if head.startswith(signature)), "")
    if not kind and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        kind = f"a text file (it begins with {head[:40].decode('ascii')!r})"
    kind = kind or "of an unknown kind"
    return CheckpointError(
        f"cannot read weights from {path}: it is {kind}. Expected a .safetensors, .pth, .pt, "
        ".bin or .npz file"
    )
