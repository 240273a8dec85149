"""Weights in pickles (.pth, .pt, .bin), read by torch's restricted unpickler."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_export.errors import CheckpointError

# keys that training scripts use for weights; averaged ones first, as timm's loader does
AVERAGED = ("state_dict_ema", "model_ema", "ema")
WRAPPERS = (*AVERAGED, "state_dict", "model_state_dict", "model", "module", "net")

CONVERT = """\
if you trust its source, convert it once, where all that it needs is installed, and load the result:
  import torch
  from safetensors.torch import save_file
  checkpoint = torch.load({name!r}, map_location="cpu", weights_only=False)
  state_dict = checkpoint["model"]  # or "state_dict"; checkpoint.state_dict() of a whole model
  save_file({{k: v.contiguous() for k, v in state_dict.items()}}, {target!r})"""


@dataclass(frozen=True)
class Selected:
    """The weights in an unpickled object.

    Attributes:
        state_dict: Tensors by name.
        aside: Names of all other entries.
        notes: Choices made, for the report.
    """

    state_dict: Mapping[str, Tensor]
    aside: tuple[str, ...]
    notes: Mapping[str, str]


def load_pickled(path: Path, *, mmap: bool) -> Any:
    """Unpickle a file of torch.save without running code that it contains.

    Args:
        path: The file.
        mmap: Read the data when they are used (zip format only).

    Raises:
        CheckpointError: The pickle needs more than tensors and plain values, or is damaged.
    """
    by_name = mmap and path.suffix != ".safetensors"  # torch takes the kind from that suffix
    try:
        if by_name:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed is None:
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path} was not loaded: it is a pickle that needs {needed[1]}, and loading more than "
            "tensors from a pickle can run any code",
            hint=CONVERT.format(name=path.name, target=path.stem + ".safetensors"),
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError) as error:  # fmt: skip
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return CheckpointError(
        f"{path} is truncated or damaged, or not a file of torch.save ({reason})",
        hint="download or save it again",
    )


def select_state_dict(loaded: Any, *, source: str) -> Selected:
    """Find the weights in what a training script saved.

    Args:
        loaded: A state dict, or a mapping that holds one under a key of `WRAPPERS`.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: There is no state dict.
    """
    expected = f"expected a state dict, or one under {', '.join(map(repr, WRAPPERS))}"
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{source} holds a {type(loaded).__name__}; {expected}")
    if not loaded:
        raise CheckpointError(f"{source} holds an empty state dict")
    for wrapper in WRAPPERS:
        inner = loaded.get(wrapper)
        if isinstance(inner, Mapping) and inner:
            selected = select_state_dict(inner, source=source)
            others = tuple(str(key) for key in loaded if key != wrapper)
            notes = dict(selected.notes)
            if wrapper in AVERAGED:
                notes["weights"] = f"{wrapper}, the averaged copy"
            return Selected(selected.state_dict, (*others, *selected.aside), notes)
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(loaded)[:8]))
        raise CheckpointError(f"{source} holds no tensors (its keys: {keys}); {expected}")
    return Selected(tensors, tuple(str(name) for name in loaded if str(name) not in tensors), {})
