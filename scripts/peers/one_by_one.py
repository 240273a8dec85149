"""A file of vit-export without vit-export: Pillow, numpy and a bare session, image after image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from peers.onnx_session import session
from peers.turns import Run, answer


def load(path: str, threads: int) -> Run:
    """Return the best class of every photograph as a function of a folder."""
    opened = session(path, threads)
    manifest = json.loads(opened.get_modelmeta().custom_metadata_map["vit_export"])
    name, how = opened.get_inputs()[0].name, manifest["preprocess"]
    height, width = how["size"]
    short_side = int(height / how["crop_pct"])
    resample = Image.Resampling[how["interpolation"].upper()]
    mean, std = (np.array(how[key], np.float32) for key in ("mean", "std"))

    def prepare(photograph: Path) -> np.ndarray:
        image = Image.open(photograph).convert("RGB")
        scale = short_side / min(image.size)
        image = image.resize([round(scale * side) for side in image.size], resample)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
        pixels = (np.asarray(image, np.float32) / 255 - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])

    def run(folder: str) -> list[int]:
        photographs = sorted(Path(folder).iterdir())
        return [int(opened.run(None, {name: prepare(p)})[0].argmax()) for p in photographs]

    return run


if __name__ == "__main__":
    answer(load)
