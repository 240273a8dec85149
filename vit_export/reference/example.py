"""Example inputs: what a module is traced with, and called with to learn its outputs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vit_export.artifact.manifest import TensorSpec

_EXAMPLE_SIZE = 2  # of a dynamic dimension; torch.export treats sizes 0 and 1 as constants


def example_input(spec: TensorSpec, sizes: Mapping[str, int] | None = None) -> Tensor:
    """Return zeros of a spec's shape; dynamic dimensions have `sizes`, or 2."""
    known = sizes or {}
    shape = [known.get(s, _EXAMPLE_SIZE) if isinstance(s, str) else s for s in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))
