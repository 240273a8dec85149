"""Open a weights file of any kind: names and shapes first, then the data of one tensor at a time.

The kind is recognised from the content, not from the name. Nothing in a file is executed: pickles
are read by torch's restricted unpickler, `.npz` archives without pickled objects.
"""

import dataclasses
import hashlib
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_export.artifact.open_file import open_file, read_text
from vit_export.checkpoint.hub import FILE_NAMES
from vit_export.checkpoint.pickles import load_pickled, select_state_dict
from vit_export.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HEAD_BYTES = 512
PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5))
# put before every name by DataParallel, torch.compile, Lightning and transformers' timm wrapper
PREFIXES = re.compile(r"((module|_orig_mod|model|timm_model|net)\.)*")
BFLOAT16 = np.dtype("V2")  # numpy lacks bfloat16, and keeps two raw bytes
SAVE_AGAIN = "download or save it again"


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """Named tensors whose data are read one at a time."""

    path: Path  # of the file, or of the index of several
    parts: tuple[Path, ...]  # files that hold the data
    tensors: Mapping[str, Tensor]  # meta tensors, with shape and dtype, by name
    read: Callable[[str], Tensor]  # reads the data of a tensor; they may share the file's memory
    metadata: Mapping[str, str] = field(default_factory=dict)  # text entries of safetensors
    aside: tuple[str, ...] = ()  # entries that are no weights, such as the optimizer's
    notes: Mapping[str, str] = field(default_factory=dict)  # choices made while opening

    def sha256(self) -> str:
        """Hash of the data files, in order, as hexadecimal digits."""
        digest = hashlib.sha256()
        for part in self.parts:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def open_tensors(path: Path) -> TensorFile:
    """Open a weights file, a folder of one model, or the index of a sharded file."""
    try:
        path = _in_folder(path) if path.is_dir() else path
        sharded = path.name.endswith(INDEX_SUFFIX)
        return _without_prefix(_open_shards(path) if sharded else _open_one(path))
    except OSError as error:
        raise CheckpointError(f"cannot read weights from {path}: {error.strerror}") from error


def _without_prefix(file: TensorFile) -> TensorFile:
    """Remove the prefixes that every name in a file has."""
    common = os.path.commonprefix(list(file.tensors))  # noqa: RUF071 - names are no paths
    prefix = next(PREFIXES.finditer(common)).group()
    return dataclasses.replace(
        file,
        tensors={name.removeprefix(prefix): tensor for name, tensor in file.tensors.items()},
        read=lambda name: file.read(prefix + name),
    )


def _in_folder(folder: Path) -> Path:
    """The weights in a folder: under a name of the hub, or the only file of a known kind."""
    files = [folder / name for name in FILE_NAMES if (folder / name).exists()][:1]
    if not files:
        files = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES and p.is_file())
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} holds several weights files: {', '.join(p.name for p in files)}",
            hint="name the one to load",
        )
    if not files:
        raise CheckpointError(
            f"{folder} holds no weights: expected one of {', '.join(FILE_NAMES)}, or one file "
            f"that ends in {', '.join(WEIGHT_SUFFIXES)}"
        )
    return files[0]


def _open_one(path: Path) -> TensorFile:
    with open_file(path, what="weights file", error=CheckpointError) as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes)", hint=SAVE_AGAIN)
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
    """Open a zip archive of torch.save or numpy."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        return _open_npz(path)
    programs = re.compile(r"/code/|/constants\.pkl$|/archive_format$")
    if any(map(programs.search, names)):
        raise CheckpointError(
            f"{path} is a TorchScript or torch.export archive: a program, not only weights",
            hint="save the weights of the model that it was made from: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        )
    if any(name.endswith("/data.pkl") for name in names):
        return _open_pickle(path, mmap=True)
    raise CheckpointError(
        f"{path} is a zip archive without weights of torch or numpy (it holds "
        f"{', '.join(names[:3]) or 'nothing'}); expected a .safetensors, .pth, .bin or .npz file"
    )


def _open_npz(path: Path) -> TensorFile:
    """Open an archive of arrays by their headers."""
    formats, tensors = np.lib.format, dict[str, Tensor]()
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as data:
                    old = formats.read_magic(data) == (1, 0)
                    read = formats.read_array_header_1_0 if old else formats.read_array_header_2_0
                    shape, _, dtype = read(data)
                if dtype.hasobject:
                    raise ValueError("it holds pickled Python objects, which are not read")
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"array {name!r} is shorter than its shape {shape}")
                tensors[name] = _meta(shape, _to_torch(np.empty(0, dtype)).dtype)
    except (ValueError, TypeError, zipfile.BadZipFile) as error:
        what = "is damaged, or not an archive of plain arrays"
        raise CheckpointError(f"{path} {what}: {error}") from error
    read_array = partial(_read_npz, path)
    return TensorFile(path=path, parts=(path,), tensors=tensors, read=read_array)


def _read_npz(path: Path, name: str) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _to_torch(arrays[name])
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CheckpointError(f"{path}: array {name!r} cannot be read: {error}") from error


def _to_torch(array: NDArray[Any]) -> Tensor:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(array, order="C"))


def _open_safetensors(path: Path) -> TensorFile:
    def read(name: str) -> Tensor:
        # opened for each tensor: this unmaps the pages that were read
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # data are mapped, and read only when they are used
            mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _truncated(path, f"safetensors cannot read it: {error}") from error
    tensors = {name: _meta(tensor.shape, tensor.dtype) for name, tensor in mapped.items()}
    return TensorFile(path=path, parts=(path,), tensors=tensors, read=read, metadata=metadata)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # file of each tensor


def _open_shards(index: Path) -> TensorFile:
    """Open all files of an index, such as model.safetensors.index.json, as one."""
    text = read_text(index, what="index of a sharded file", error=CheckpointError)
    try:
        weight_map = msgspec.json.decode(text, type=_Index).weight_map
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{index} is not the index of a sharded file: {error}") from error
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} points outside its own folder: {', '.join(outside)}")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise CheckpointError(
            f"{index.name} names {len(names)} files, {len(missing)} are not beside it: "
            f"{', '.join(missing)}",
            hint="download them too",
        )
    files = {name: _open_one(index.parent / name) for name in names}
    if lacking := [t for t, name in weight_map.items() if t not in files[name].tensors]:
        raise CheckpointError(
            f"{index.name} names tensors that its files do not hold: {', '.join(lacking)}"
        )
    return TensorFile(
        path=index,
        parts=tuple(file.path for file in files.values()),
        tensors={t: files[name].tensors[t] for t, name in weight_map.items()},
        read=lambda tensor: files[weight_map[tensor]].read(tensor),
    )


def _open_pickle(path: Path, *, mmap: bool) -> TensorFile:
    state_dict, aside, notes = select_state_dict(load_pickled(path, mmap=mmap), source=str(path))
    if empty := [name for name, tensor in state_dict.items() if tensor.is_meta]:
        raise CheckpointError(
            f"{path} holds {len(empty)} tensors without data (on the device 'meta'), the first is "
            f"{empty[0]}",
            hint="save the state dict again after all weights are loaded or gathered",
        )
    return TensorFile(
        path=path,
        parts=(path,),
        tensors={  # a quantised tensor counts as integers, which the model refuses
            name: _meta(tensor.shape, torch.int8 if tensor.is_quantized else tensor.dtype)
            for name, tensor in state_dict.items()
        },
        read=lambda name: state_dict[name].to_dense(),
        aside=aside,
        notes=notes,
    )


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _truncated(path: Path, what: str) -> CheckpointError:
    what = f"{what}; {path.stat().st_size} bytes"
    return CheckpointError(f"{path} is truncated or damaged ({what})", hint=SAVE_AGAIN)


SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves", "git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow)", ""),
    (b"\x93NUMPY", "a single numpy array (.npy)", ""),
    (b"GGUF", "a GGUF file", ""),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
)


def _unknown_kind(path: Path, head: bytes) -> CheckpointError:
    kind, hint = "of an unknown kind", ""
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        kind = f"a text file (it begins with {head[:40].decode('ascii')!r})"
    for signature, name, way_out in SIGNATURES:
        if head.startswith(signature):
            kind, hint = name, way_out
    return CheckpointError(
        f"cannot read weights from {path}: it is {kind}. Expected a .safetensors, .pth, .pt, "
        ".bin or .npz file",
        hint=hint,
    )
