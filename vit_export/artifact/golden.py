"""The golden file: what the torch model computes, so that a device without torch can check.

An .npz of plain arrays, stored uncompressed so that a C++ program can read it too:

    images            uint8 (S, H, W, C)   pictures at the model's size, not yet normalised
    input.NAME        (S, ...)             instead of images, for inputs that are not pictures
    output.NAME       float64 (S, ...)     what torch computes in float64
    e32.NAME          float64 ()           max |torch float32 - float64| over all samples
    e16.NAME          float64 ()           the same for float16; infinite where it overflows
    ebf16.NAME        float64 ()           the same for bfloat16
    block.names       str (L,)             tensors that leave the encoder blocks
    block.indices     int64 (L, K)         elements of a flattened row that were kept
    block.values      float64 (L, S, K)
    block.e32         float64 (L,)         and block.e16, block.ebf16

A model of dynamic size has the same at other sizes, under names such as `48x32.images`.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.open_file import open_file
from vit_export.errors import ArtifactError

BATCHES = (1, 2, 3, 8)
HALF_BASELINES = ("e16", "ebf16")
BASELINES = ("e32", *HALF_BASELINES)
MAX_RELATIVE_E32 = 1e-2  # of max |y64|; a looser baseline would let anything pass
# RuntimeError: a zip archive that asks for a password, or for what Python cannot decompress
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_LARGEST_INDEX = 2**31 - 1  # of an element in a flattened row
BLOCK_SAMPLES = 256  # K, the elements kept of each block's output, per row

_OTHER_SIZE = re.compile(r"(\d+x\d+)\.")

Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A subsample of what leaves each encoder block.

    Attributes:
        names: Tensor names, in the order of the network.
        indices: Elements of a flattened row that were kept (L, K).
        values: float64 (L, S, K).
        e32: torch float32's own distance, per block (L,).
        e16: That of float16, infinite where it overflows; empty in a file of an old version.
        ebf16: That of bfloat16.
    """

    names: tuple[str, ...]
    indices: NDArray[np.int64]
    values: Float64
    e32: Float64
    e16: Float64 = field(default_factory=lambda: np.zeros(0))
    ebf16: Float64 = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs, and what torch makes of them in float64; the fields of the golden file.

    Attributes:
        images: uint8 (S, H, W, C), or `None` where the inputs are not pictures.
        inputs: Raw inputs (S, ...) by name; empty where they are pictures.
        outputs: float64 (S, ...) by name.
        e32: torch float32's own distance from `outputs`, by name.
        e16: That of float16, infinite where it overflows; empty in a file of an old version.
        ebf16: That of bfloat16.
        blocks: What leaves each encoder block; `None` where it was not recorded.
        others: The same at other image sizes, for a model of dynamic size.
    """

    images: UInt8 | None = None
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outputs: Mapping[str, Float64]
    e32: Mapping[str, float]
    e16: Mapping[str, float] = field(default_factory=dict)
    ebf16: Mapping[str, float] = field(default_factory=dict)
    blocks: Blocks | None = None
    others: tuple[Golden, ...] = ()

    @property
    def size(self) -> str:
        """Height and width of the images, e.g. `"48x32"`; empty where there are none."""
        return "" if self.images is None else "x".join(map(str, self.images.shape[1:3]))

    @property
    def samples(self) -> int:
        """S, the number of samples."""
        return len(next(iter(self.outputs.values())))

    def write(self, path: Path) -> None:
        """Write the file; the same content gives the same bytes."""
        arrays = self._arrays()
        for other in self.others:
            arrays |= {f"{other.size}.{name}": array for name, array in other._arrays().items()}
        with path.open("wb") as stream:
            np.savez(stream, **arrays)

    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {f"input.{name}": x for name, x in self.inputs.items()}
        if self.images is not None:
            arrays["images"] = self.images
        for name, values in self.outputs.items():
            arrays[f"output.{name}"] = values
            for baseline in BASELINES:
                if name in getattr(self, baseline):
                    arrays[f"{baseline}.{name}"] = np.float64(getattr(self, baseline)[name])
        if self.blocks is not None:
            arrays["block.names"] = np.array(self.blocks.names)
            arrays["block.indices"] = self.blocks.indices
            arrays["block.values"] = self.blocks.values
            for baseline in BASELINES:
                if getattr(self.blocks, baseline).size:
                    arrays[f"block.{baseline}"] = getattr(self.blocks, baseline)
        return arrays

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Golden:
        """Read a golden file.

        Raises:
            ArtifactError: No such file, not a golden file, or one whose arrays disagree.
        """
        arrays = read_arrays(path, what="golden file")
        try:
            return cls._from_arrays(arrays)
        except (KeyError, StopIteration) as error:
            raise ArtifactError(f"{path}: not a golden file: it lacks {error}") from error
        except ValueError as error:
            raise ArtifactError(
                f"{path}: not a golden file, or a damaged one: {error}; export the model again"
            ) from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Golden:
        def named(prefix: str) -> dict[str, NDArray[Any]]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        outputs = named("output.")
        if not outputs or ("images" not in arrays and not named("input.")):
            raise KeyError("its inputs or its outputs")
        others: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in arrays.items():
            if found := _OTHER_SIZE.match(name):
                others.setdefault(found[1], {})[name.removeprefix(found[0])] = array
        blocks = None
        if "block.names" in arrays:
            if arrays["block.names"].ndim != 1 or arrays["block.names"].dtype.kind != "U":
                raise ValueError("block.names are not text (L,)")
            blocks = Blocks(
                names=tuple(map(str, arrays["block.names"])),
                indices=arrays["block.indices"],
                values=arrays["block.values"],
                e32=arrays["block.e32"],
                **{b: arrays[f"block.{b}"] for b in HALF_BASELINES if f"block.{b}" in arrays},
            )
        for name in outputs:
            _check_no_distance(f"e32.{name}", arrays[f"e32.{name}"], shape=())
        halves = {baseline: named(f"{baseline}.") for baseline in HALF_BASELINES}
        for baseline, distances in halves.items():
            for name, e in distances.items():
                _check_no_distance(f"{baseline}.{name}", e, shape=(), infinite=True)
        golden = cls(
            images=arrays.get("images"),
            inputs=named("input."),
            outputs=outputs,
            e32={name: float(arrays[f"e32.{name}"]) for name in outputs},
            **{b: {name: float(e) for name, e in found.items()} for b, found in halves.items()},
            blocks=blocks,
            others=tuple(cls._from_arrays(other) for other in others.values()),
        )
        _check_disagreeing(golden)
        for size, other in zip(others, golden.others, strict=True):
            if other.size != size:
                raise ValueError(f"{size}.images are pictures of {other.size or 'no size'}")
        return golden


def _check_disagreeing(golden: Golden) -> None:
    """Raise ValueError that names the array which does not fit the others."""
    images, arrays = golden.images, {f"input.{name}": x for name, x in golden.inputs.items()}
    if images is not None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (S, H, W, C)")
        arrays["images"] = images
    for name, output in golden.outputs.items():
        if output.dtype.kind not in "fiu":  # a module of the user may give integers
            raise ValueError(f"output.{name} is {output.dtype}, not numbers")
        arrays[f"output.{name}"] = output
    samples = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(samples.values())) > 1 or 0 in samples.values():
        counts = ", ".join(f"{count} of {name}" for name, count in samples.items())
        raise ValueError(f"it must hold as many samples of everything, and some: found {counts}")
    if golden.blocks is not None:
        _check_disagreeing_blocks(golden.blocks, golden.samples)


def _check_disagreeing_blocks(blocks: Blocks, samples: int) -> None:
    indices, count = blocks.indices, len(blocks.names)
    if indices.dtype != np.int64 or indices.ndim != 2 or len(indices) != count:
        raise ValueError(
            f"block.indices are {indices.dtype} {indices.shape}, not int64 ({count}, K)"
        )
    if not indices.size or indices.min() < 0 or indices.max() > _LARGEST_INDEX:
        raise ValueError(f"block.indices must be some in 0 to {_LARGEST_INDEX}")
    expected = (count, samples, indices.shape[1])
    if blocks.values.dtype != np.float64 or blocks.values.shape != expected:
        raise ValueError(
            f"block.values are {blocks.values.dtype} {blocks.values.shape}, not float64 {expected}"
        )
    _check_no_distance("block.e32", blocks.e32, shape=(count,))
    for baseline in HALF_BASELINES:
        distances = getattr(blocks, baseline)
        if distances.size:
            _check_no_distance(f"block.{baseline}", distances, shape=(count,), infinite=True)


def _check_no_distance(
    name: str, distances: NDArray[Any], *, shape: tuple[int, ...], infinite: bool = False
) -> None:
    if distances.dtype != np.float64 or distances.shape != shape:
        raise ValueError(f"{name} is {distances.dtype} {distances.shape}, not float64 {shape}")
    finite = np.isfinite(distances) | (infinite & (distances == np.inf))
    bad = distances[~(finite & (distances >= 0))]
    if bad.size:
        expected = "at least 0" if infinite else "finite and at least 0"
        raise ValueError(f"{name} holds {bad[0]}, not {expected}")


def read_arrays(path: str | os.PathLike[str], *, what: str) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz file; none is unpickled.

    Raises:
        ArtifactError: There is no such file, or it is no .npz file; `what` says which kind of
            file it should be.
    """
    try:
        with open_file(path, what=what) as stream:  # numpy leaves it open where it fails
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds one array")
            return {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise ArtifactError(f"{path}: not a {what}, or a damaged one ({error})") from error


def golden_path(artifact: str | os.PathLike[str]) -> Path:
    """Where an artifact's golden file lies: `NAME.golden.npz` beside it."""
    return Path(artifact).with_suffix(".golden.npz")


def find_golden(
    artifact: str | os.PathLike[str],
    golden: str | os.PathLike[str] | None = None,
    *,
    hint: str = "copy it into the same folder, or export the model again",
) -> Path:
    """Return the path of the golden file that an artifact is measured with.

    Args:
        artifact: An .onnx or .engine file.
        golden: The golden file, where it is not beside the artifact.
        hint: What to do when there is none.

    Raises:
        ArtifactError: None is given, and there is none beside the artifact, nor beside the file
            that a symbolic link in its place leads to.
    """
    if golden is not None:
        return Path(golden)
    beside = golden_path(artifact)
    for path in (beside, golden_path(os.path.realpath(artifact))):
        if path.exists():
            return path
    raise ArtifactError(
        f"{artifact}: there is no golden file {beside.name} beside it, so it cannot be measured",
        hint=hint,
    )


def block_indices(row_size: int) -> NDArray[np.int64]:
    """Which elements of a flattened row to keep (K,): spread evenly, repeated in a short row."""
    return np.linspace(0, row_size - 1, BLOCK_SAMPLES).round().astype(np.int64)


def _random_bytes(count: int, seed: int) -> UInt8:
    """Uniform bytes; numpy guarantees the raw stream of a bit generator, not its methods."""
    return (np.random.PCG64(seed).random_raw(count) >> np.uint64(56)).astype(np.uint8)


def pictures(height: int, width: int, channels: int) -> UInt8:
    """Synthetic pictures: smooth structures, edges, noise, and a constant.

    The same on every machine, so that two exports give the same golden inputs.

    Returns:
        uint8 (8, H, W, C).
    """
    y = np.linspace(0.0, 1.0, height)[:, None, None]
    x = np.linspace(0.0, 1.0, width)[None, :, None]
    c = np.arange(channels)[None, None, :]
    noise = _random_bytes(height * width * channels, seed=1).reshape(height, width, channels)
    coarse = _random_bytes(64 * channels, seed=2).reshape(8, 8, channels)
    rows = np.arange(height) * 8 // height
    columns = np.arange(width) * 8 // width
    blobs = np.exp(-(((x - 0.3 - 0.2 * c) ** 2 + (y - 0.6 + 0.1 * c) ** 2) / 0.04))
    waves = np.sin(2 * np.pi * (3 * x + (2 + c) * y)) + np.sin(2 * np.pi * (5 - c) * x * y)
    disc = (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.08 + 0.02 * c
    stripes = np.sin(2 * np.pi * (20 + 3 * c) * (x + 0.3 * y)) > 0
    views = (
        255 * (0.6 * x + 0.4 * y) * (1 - 0.3 * c / channels),  # a gradient
        255 * blobs,
        127.5 + 60 * waves,
        np.where(disc, 230 - 40 * c, 25 + 30 * c),  # one hard edge
        np.where(stripes, 250, 5 + 20 * c),  # many hard edges
        coarse[rows][:, columns].astype(np.float64),  # flat squares
        noise.astype(np.float64),
        np.full((height, width, channels), 128.0),  # a constant
    )
    shape = (height, width, channels)
    return np.stack(
        [np.broadcast_to(v, shape).round().clip(0, 255).astype(np.uint8) for v in views]
    )
