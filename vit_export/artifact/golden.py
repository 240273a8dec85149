"""The golden file: what torch computes, so that a device without torch can validate.

An .npz file of plain arrays, uncompressed so that a C++ program can read it too; `_FORMS` lists
them. A model of dynamic size has the same at other sizes, with names such as `48x32.images`.
"""

from __future__ import annotations

import math
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

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.open_file import open_file
from vit_export.errors import ArtifactError, with_article

BATCHES = (1, 2, 3)
HALF_BASELINES = ("e16", "ebf16")
BASELINES = ("e32", *HALF_BASELINES)
MAX_RELATIVE_E32 = 1e-2  # of max |y64|; a looser baseline would let anything pass
BLOCK_SAMPLES = 256  # K, the elements kept of each block's output, per row
_LARGEST_INDEX = 2**31 - 1  # of an element in a flattened row
# RuntimeError: a zip archive that asks for a password, or has an unknown compression
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_HINT = "export the model again, or give the NAME.golden.npz that lies beside NAME.onnx"
_OTHER_SIZE = re.compile(r"(\d+x\d+)\.")
_FORMS = {  # dtypes and dimensions of `images`, `input.NAME` and so on; one letter is one size
    "images": ("uint8", "S H W C"),  # pictures at the model's size, not normalised
    "input": ("bool float int uint", "S ..."),  # where the inputs are not pictures
    "output": ("float int uint", "S ..."),  # a module of the user may return integers
    **dict.fromkeys(BASELINES, ("float64", "")),  # max |torch float32 - float64| over all samples
    "block.names": ("str", "L"),  # tensors that leave the encoder blocks
    "block.indices": ("int64", "L K"),  # elements of a flattened row that were kept
    "block.values": ("float64", "L S K"),
    **{f"block.{baseline}": ("float64", "L") for baseline in BASELINES},
}

Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A subsample of the output of each encoder block."""

    names: tuple[str, ...]  # of the tensors, in the order of the network
    indices: NDArray[np.int64]  # (L, K) elements of a flattened row that were kept
    values: Float64  # (L, S, K)
    e32: Float64  # (L,) error of torch float32 per block
    e16: Float64 = field(default_factory=lambda: np.zeros(0))  # empty in an old file
    ebf16: Float64 = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden inputs and their float64 outputs: the contents of a golden file."""

    images: UInt8 | None = None  # (S, H, W, C); None where the inputs are not pictures
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # raw; none beside images
    outputs: Mapping[str, Float64]  # (S, ...)
    e32: Mapping[str, float]  # error of torch float32, by output
    e16: Mapping[str, float] = field(default_factory=dict)  # infinite where float16 overflows
    ebf16: Mapping[str, float] = field(default_factory=dict)
    blocks: Blocks | None = None
    others: tuple[Golden, ...] = ()  # at other image sizes, for a model of dynamic size

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
        arrays |= {f"output.{name}": y for name, y in self.outputs.items()}
        if self.images is not None:
            arrays["images"] = self.images
        for baseline in BASELINES:
            for name, error in getattr(self, baseline).items():
                arrays[f"{baseline}.{name}"] = np.float64(error)
        if self.blocks is not None:
            kept = vars(self.blocks) | {"names": np.array(self.blocks.names)}
            arrays |= {f"block.{name}": array for name, array in kept.items() if array.size}
        return arrays

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Golden:
        """Read a golden file; its arrays must fit together."""
        arrays = read_arrays(path, what="golden file", hint=_HINT)
        try:
            return cls._from_arrays(arrays)
        except (KeyError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(
                f"{path}: not a golden file, or a damaged one: {reason}",
                hint=_HINT,
            ) from error

    @classmethod
    def _from_arrays(cls, arrays: Arrays) -> Golden:
        def named(prefix: str) -> dict[str, NDArray[Any]]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        outputs = named("output.")
        if not outputs or ("images" not in arrays and not named("input.")):
            raise KeyError("its inputs or its outputs")
        _check_arrays(arrays)
        others: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in arrays.items():
            if match := _OTHER_SIZE.match(name):
                others.setdefault(match[1], {})[name.removeprefix(match[0])] = array
        golden = cls(
            images=arrays.get("images"),
            inputs=named("input."),
            outputs=outputs,
            e32={name: float(arrays[f"e32.{name}"]) for name in outputs},
            e16={name: float(error) for name, error in named("e16.").items()},
            ebf16={name: float(error) for name, error in named("ebf16.").items()},
            blocks=_read_blocks(arrays) if "block.names" in arrays else None,
            others=tuple(cls._from_arrays(other) for other in others.values()),
        )
        for size, other in zip(others, golden.others, strict=True):
            if other.size != size:
                raise ValueError(f"{size}.images are pictures of {other.size or 'no size'}")
        return golden


def _read_blocks(arrays: Arrays) -> Blocks:
    indices = arrays["block.indices"]
    if indices.min() < 0 or indices.max() > _LARGEST_INDEX:
        raise ValueError(f"block.indices must be some in 0 to {_LARGEST_INDEX}")
    return Blocks(
        names=tuple(map(str, arrays["block.names"])),
        indices=indices,
        values=arrays["block.values"],
        e32=arrays["block.e32"],
        **{b: arrays[f"block.{b}"] for b in HALF_BASELINES if f"block.{b}" in arrays},
    )


def _check_arrays(arrays: Arrays) -> None:
    """Raise ValueError that names an array of another dtype or shape than `_FORMS` has."""
    sizes: dict[str, int] = {}
    for form, (dtypes, dimensions) in _FORMS.items():
        letters = dimensions.replace("...", "").split()
        for name in arrays:
            if name != form and not name.startswith(f"{form}."):
                continue
            array, spec = arrays[name], tuple(sizes.get(letter, letter) for letter in letters)
            shape = array.shape[: len(letters)] if "..." in dimensions else array.shape
            fits = TensorSpec(name, dtypes, spec).fits(shape) and 0 not in shape
            if not (fits and array.dtype.name.startswith(tuple(dtypes.split()))):
                expected = ", ".join(str(sizes.get(d, d)) for d in dimensions.split())
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, expected "
                    f"{' or '.join(dtypes.split())} ({expected})"
                )
            sizes |= dict(zip(letters, shape, strict=True))
            if form.endswith(BASELINES):
                _check_errors(name, array, may_be_infinite=not form.endswith("e32"))


def _check_errors(name: str, errors: Float64, *, may_be_infinite: bool) -> None:
    """Raise ValueError unless the errors of torch are at least 0; those of e32 are finite too."""
    good = (errors >= 0) & (np.isfinite(errors) | may_be_infinite)
    if not good.all():
        expected = "at least 0" if may_be_infinite else "finite and at least 0"
        raise ValueError(f"{name} holds {errors[~good][0]}, expected {expected}")


def read_arrays(path: str | os.PathLike[str], *, what: str, hint: str) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz file, unpickling nothing; messages say `what` it is."""
    try:
        with open_file(path, what=what) as stream:  # numpy leaves it open where it fails
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds one array")
            return {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        # numpy's ValueError advises its caller to load the file unsafely
        reason = "" if isinstance(error, ValueError) else f" ({error})"
        raise ArtifactError(
            f"{path}: not {with_article(what)}, or a damaged one{reason}", hint=hint
        ) from error


def golden_path(artifact: str | os.PathLike[str]) -> Path:
    """Return the path of an artifact's golden file: `NAME.golden.npz` beside it."""
    return Path(artifact).with_suffix(".golden.npz")


def find_golden(
    artifact: str | os.PathLike[str],
    golden: str | os.PathLike[str] | None = None,
    *,
    hint: str = "copy it into the same folder, or export the model again",
) -> Path:
    """Return the golden file of an artifact: `golden`, or the one beside the artifact.

    Where the artifact is a symbolic link, also the one beside the file that it leads to.
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
    """Return the elements of a flattened row to keep (K,), spread evenly; short rows repeat."""
    return np.linspace(0, row_size - 1, BLOCK_SAMPLES).round().astype(np.int64)


def random_bytes(shape: tuple[int, ...], seed: int) -> UInt8:
    """Return uniform bytes from the raw stream, which numpy guarantees across versions."""
    raw = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(56)
    return raw.astype(np.uint8).reshape(shape)


def pictures(height: int, width: int, channels: int) -> UInt8:
    """Return synthetic pictures, uint8 (4, H, W, C): waves, a disc, noise and stripes.

    They are the same on every machine, so that two exports have the same golden inputs.
    """
    shape = (height, width, channels)
    y = np.linspace(0.0, 1.0, height)[:, None, None]
    x = np.linspace(0.0, 1.0, width)[None, :, None]
    c = np.arange(channels)[None, None, :]
    waves = np.sin(2 * np.pi * (3 * x + (2 + c) * y)) + np.sin(2 * np.pi * (5 - c) * x * y)
    disc = (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.08 + 0.02 * c
    stripes = np.sin(2 * np.pi * (20 + 3 * c) * (x + 0.3 * y)) > 0
    views = (
        127.5 + 60 * waves,
        np.where(disc, 230 - 40 * c, 25 + 30 * c),  # one hard edge between flat areas
        random_bytes(shape, seed=1),
        np.where(stripes, 250, 5 + 20 * c),  # many hard edges
    )
    pixels = np.stack([np.broadcast_to(view, shape) for view in views])
    return pixels.round().clip(0, 255).astype(np.uint8)
