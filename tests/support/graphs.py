"""Reading and writing small ONNX graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def constants(path: Path) -> dict[str, np.ndarray]:
    """Return every initializer of a file."""
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
