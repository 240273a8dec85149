"""Weights in pickles (.pth, .pt, .bin): torch's restricted unpickler, and nothing else."""

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

# where training scripts put the weights; averaged ones first, as timm's loader takes them
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
)
AVERAGED = WRAPPERS[:3]

CONVERT = """\
  import torch
  from safetensors.torch import save_file
  checkpoint = torch.load({name!r}, map_location="cpu", weights_only=False)
  state_dict = checkpoint["model"]  # or "state_dict"; checkpoint.state_dict() of a whole model
  save_file({{k: v.contiguous() for k, v in state_dict.items()}}, {target!r})"""


@dataclass(frozen=True)
class Selected:
    """The weights found in an unpickled object.

    Attributes:
        state_dict: Name to tensor.
        aside: Names of what was left aside.
        notes: What was chosen.
    """

    state_dict: Mapping[str, Tensor]
    aside: tuple[str, ...]
    notes: Mapping[str, str]


def load_pickled(path: Path, *, mmap: bool) -> Any:
    """Unpickle a file of torch.save without running code of its own.

    Args:
        path: The file.
        mmap: Leave the data in the file until they are used (zip format only).

    Raises:
        CheckpointError: The pickle asks for more than tensors and plain values, or is damaged.
    """
    by_name = mmap and path.suffix != ".safetensors"  # torch believes that ending
    try:
        if by_name:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise CheckpointError(
                f"{path} is truncated or damaged, or not a file of torch.save "
                f"({_first_line(error)})"
            ) from error
        raise CheckpointError(
            f"{path} was not loaded: it is a pickle that needs {wanted[1]}, and a pickle that is "
            "more than tensors can run any code. If you trust where it comes from, convert it "
            "once, in an environment that has what it needs, and load the result:\n"
            + CONVERT.format(name=path.name, target=path.stem + ".safetensors")
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError) as error:  # fmt: skip
        raise CheckpointError(
            f"{path} is truncated or damaged: torch cannot read it ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def select_state_dict(loaded: Any, *, source: str) -> Selected:
    """Find the weights in what a training script saved.

    Args:
        loaded: A state dict, or a mapping that holds one under a usual name.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: There is none.
    """
    if isinstance(loaded, Mapping) and not loaded:
        raise CheckpointError(f"{source} holds an empty state dict: nothing to load")
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{source} holds a {type(loaded).__name__}; expected a state dict (names to tensors), "
            f"or a mapping with one under {', '.join(map(repr, WRAPPERS))}"
        )
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
        raise CheckpointError(
            f"{source} holds no tensors (its keys: {', '.join(map(str, list(loaded)[:8]))}); "
            f"expected a state dict, or one under {', '.join(map(repr, WRAPPERS))}"
        )
    aside = tuple(str(name) for name in loaded if str(name) not in tensors)
    return Selected(tensors, aside, {})
