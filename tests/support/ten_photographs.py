"""Ten files of real photographs, each stored in another way."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import sklearn.datasets
from image_kinds import exif
from PIL import Image


def write_photographs(folder: Path) -> list[Path]:
    """Write them: no two of one kind, few of them square."""
    images = Path(sklearn.datasets.__file__).parent / "images"
    china, flower = (Image.open(images / name) for name in ("china.jpg", "flower.jpg"))
    portrait = Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"))
    alpha = portrait.resize((300, 351)).convert("RGBA")
    alpha.putalpha(portrait.resize((300, 351)).convert("L"))
    deep = np.asarray(china.convert("L"), dtype=np.uint16) * 257 + 3
    made = {
        "photograph.jpg": (china, {"quality": 95}),
        "progressive.jpg": (flower, {"quality": 80, "progressive": True}),
        "portrait.jpg": (portrait, {"quality": 90, "subsampling": 0}),
        "rotated.jpg": (china.transpose(Image.Transpose.ROTATE_90), {"exif": exif(6)}),
        "upside-down.png": (flower.crop((80, 20, 480, 420)), {"exif": exif(3)}),
        "grey.jpg": (portrait.convert("L"), {}),
        "cmyk.jpg": (flower.convert("CMYK"), {}),
        "alpha.png": (alpha, {}),
        "sixteen-bit.png": (Image.fromarray(deep), {}),
        "palette.png": (china.crop((0, 0, 600, 97)).quantize(256), {"transparency": 3}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]
