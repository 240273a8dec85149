"""NNCF's post-training INT8 of an ONNX file for OpenVINO, calibrated on photographs.

python -m peers.nncf_quantize ONNX PHOTOGRAPHS SIZE OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino
from PIL import Image


def prepare(path: Path, size: int) -> np.ndarray:
    """Return the pixel values of a photograph: values in [-1, 1], float32 (1, 3, size, size)."""
    pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size)), np.float32)
    return (pixels / 127.5 - 1.0).transpose(2, 0, 1)[None]


def main() -> None:
    """Do what the module says."""
    source, photographs, size, output = sys.argv[1:]
    paths = sorted(Path(photographs).iterdir())
    dataset = nncf.Dataset(paths, lambda path: prepare(path, int(size)))
    model = nncf.quantize(
        openvino.convert_model(source), dataset, subset_size=len(paths),
        model_type=nncf.ModelType.TRANSFORMER,
    )  # fmt: skip
    openvino.save_model(model, output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
