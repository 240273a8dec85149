"""Draws scanned digits in the terminal, each with the class that an artifact gives it.

    python scripts/digits/recognise.py ARTIFACT FOLDER

The name of a file in the folder is the digit on it, e.g. `7.png`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import vit_export

COLUMNS, SIDE_PX, GAP = 5, 14, "   "
HALF_BLOCKS = " ▄▀█"  # lower half, upper half, both
DARK = 90  # of 255: lighter pixels are ink


def draw(scan: Image.Image) -> list[str]:
    """Return lines of half blocks: two rows of pixels in one line."""
    small = np.asarray(scan.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))
    upper, lower = (small > DARK)[::2], (small > DARK)[1::2]
    codes = 2 * upper.astype(int) + lower
    return ["".join(HALF_BLOCKS[code] for code in line) for line in codes]


def main() -> int:
    """Draw and count; exits with 1 where fewer than half are recognised."""
    artifact, folder = Path(sys.argv[1]), Path(sys.argv[2])
    scans = sorted(folder.glob("*.png"))
    with vit_export.load(artifact) as model:
        predictions = [model.classify(scan, top=1)[0] for scan in scans]
        provider = model.provider
    correct = [p.label == scan.stem for p, scan in zip(predictions, scans, strict=True)]
    for start in range(0, len(scans), COLUMNS):
        row = slice(start, start + COLUMNS)
        print()
        for lines in zip(*(draw(Image.open(scan)) for scan in scans[row]), strict=True):
            print(GAP.join(lines).rstrip())
        captions = [
            f"{p.label}  {p.score:.1%}" + ("" if right else f" ({scan.stem}!)")
            for p, right, scan in zip(predictions[row], correct[row], scans[row], strict=True)
        ]
        print(GAP.join(caption.center(SIDE_PX) for caption in captions).rstrip())
    print(f"\n{sum(correct)} of {len(scans)} scans that the model never saw recognised, "
          f"by {artifact.name} on {provider}")  # fmt: skip
    return 0 if 2 * sum(correct) >= len(scans) else 1


if __name__ == "__main__":
    sys.exit(main())
