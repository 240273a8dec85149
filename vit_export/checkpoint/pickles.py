"""Weights in pickles (.pth, .pt, .bin), read by torch's restricted unpickler."""

import argparse
import pathlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_export.errors import CheckpointError, with_article

# keys that training scripts use for weights; averaged ones first, as timm's loader does
AVERAGED = ("state_dict_ema", "model_ema", "ema")
WRAPPERS = (
    *(*AVERAGED, "state_dict", "model_state_dict", "model", "module", "net", "network"),
    *("teacher", "student", "target_encoder", "encoder", "backbone", "weights", "params"),
)


def _without_default(*_factory: object) -> dict[Any, Any]:
    """Stand in for `collections.defaultdict`, into which torch's unpickler puts nothing."""
    return {}


# classes that trainers save beside the weights; to make one of them runs none of its own code
HARMLESS: list[Any] = [
    *(argparse.Namespace, bool, dict, float, int, list, set, str, tuple),
    (_without_default, "collections.defaultdict"),
    *(np.dtype, np.ndarray, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}),
    *(
        (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for value, name in ((np.float64(), "scalar"), (np.empty(0), "_reconstruct"))
    ),
    *(
        (
            pathlib.PurePosixPath if kind == "PosixPath" else pathlib.PureWindowsPath,
            f"{module}.{kind}",
        )
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath")
    ),
]

CONVERT = """\
if you trust its source, convert it once, where all that it needs is installed, and load the result:
  import torch
  from safetensors.torch import save_file
  checkpoint = torch.load({name!r}, map_location="cpu", weights_only=False)
  state_dict = checkpoint["model"]  # or "state_dict"; checkpoint.state_dict() of a whole model
  save_file({{k: v.contiguous() for k, v in state_dict.items()}}, {target!r})"""


def load_pickled(path: Path, *, mmap: bool) -> Any:
    """Unpickle a file of torch.save without running code that it contains.

    With `mmap`, data are read when they are used (zip format only).
    """
    by_name = mmap and path.suffix != ".safetensors"  # torch takes the kind from that suffix
    try:
        with torch.serialization.safe_globals(HARMLESS):
            if by_name:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
            AttributeError, AssertionError) as error:  # fmt: skip
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} was not loaded: it is a pickle that needs {needed[1]}, and loading more "
                "than tensors from a pickle can run any code",
                hint=CONVERT.format(name=path.name, target=path.stem + ".safetensors"),
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{path} is truncated or damaged, or not a file of torch.save ({reason})",
            hint="download or save it again",
        ) from error


def select_state_dict(
    loaded: Any, *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, str]]:
    """Find the state dict in what a training script saved, also under a key of `WRAPPERS`.

    Returns its tensors by name, the names of all other entries, and notes for the report.
    """
    expected = f"expected a state dict, or one under {', '.join(map(repr, WRAPPERS))}"
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{source} holds {with_article(type(loaded).__name__)}; {expected}")
    if not loaded:
        raise CheckpointError(f"{source} holds an empty state dict")
    for wrapper in WRAPPERS:
        inner = loaded.get(wrapper)
        if isinstance(inner, Mapping) and _holds_tensors(inner):
            tensors, aside, notes = select_state_dict(inner, source=source)
            if wrapper in AVERAGED:
                notes["weights"] = f"{wrapper}, the averaged copy"
            elif wrapper in ("teacher", "student", "target_encoder", "encoder"):
                notes["weights"] = wrapper
            return tensors, (*(str(key) for key in loaded if key != wrapper), *aside), notes
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(loaded)[:8]))
        raise CheckpointError(f"{source} holds no tensors (its keys: {keys}); {expected}")
    return tensors, tuple(str(name) for name in loaded if str(name) not in tensors), {}


def _holds_tensors(value: Any) -> bool:
    """Whether a mapping holds tensors, itself or in another mapping."""
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, Tensor)
