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

COLUMNS, WIDTH, GAP = 5, 14, "  "
SHADES = " ░▒▓█"


def draw(scan: Image.Image) -> list[str]:
    """Return 8 lines of 14 characters: the 8 x 8 px of the scan, without its empty first column."""
    small = np.asarray(scan.convert("L").resize((8, 8), Image.Resampling.BOX))[:, 1:]
    levels = (small.astype(int) * len(SHADES)) // 256
    return ["".join(2 * SHADES[level] for level in line) for line in levels]


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
        print(GAP.join(caption.center(WIDTH) for caption in captions).rstrip())
    print(
        f"\n{sum(correct)} of {len(scans)} scans that the model never saw recognised, "
        f"by {artifact.name} on {provider}"
    )
    if not all(correct):
        print("A mark such as (5!) is the digit on a scan that was taken for another one.")
    return 0 if 2 * sum(correct) >= len(scans) else 1


if __name__ == "__main__":
    sys.exit(main())
