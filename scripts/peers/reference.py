"""Write photographs as pixel values, and the logits that timm's model has for them in float64.

python -m peers.reference VARIANT WEIGHTS PHOTOGRAPHS NUMBER OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from peers.timm_model import image_preparation, timm_model


def main() -> None:
    """Do what the module says."""
    variant, weights, photographs, number, output = sys.argv[1:]
    model = timm_model(variant, weights)
    prepare = image_preparation(model)
    paths = sorted(Path(photographs).iterdir())[: int(number)]
    pixels = torch.stack([prepare(Image.open(path)) for path in paths])
    with torch.inference_mode():
        logits = model.double()(pixels.double())
    np.savez(output, pixel_values=pixels.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    main()
