"""Calibration: run images through an fp32 artifact to measure the ranges of its activations.

One pass, batch by batch; only the statistics are kept.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vit_export.artifact.golden import Golden
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import GateError, UsageError
from vit_export.gate.accuracy import RealImages, read_images
from vit_export.gate.trace import golden_feeds
from vit_export.images.prepare import prepare_batch
from vit_export.progress import Progress, silent
from vit_export.quantization.activation_ranges import Ranges, TensorRange
from vit_export.runner import batch_size, run_filled
from vit_export.runtime.onnxruntime.runner import OrtRunner

MAX_IMAGES = 128  # TensorRT's guide uses about 500 of ImageNet; ranges of a ViT need fewer
BATCH = 8


class Calibrator:
    """Measures the ranges of tensors on images of the user, or on the golden images without any.

    `description` names the images; `warnings` says what a calibration found wrong with them.
    """

    def __init__(
        self,
        golden: Golden,
        preprocess: Preprocess | None,  # None where the inputs of the artifact are no images
        images: str | os.PathLike[str] | None = None,
        *,
        progress: Progress = silent,
    ) -> None:
        self._golden, self._preprocess, self._progress = golden, preprocess, progress
        self._images: RealImages | None = None
        self._count = golden.samples
        self.description = f"the {self._count} golden images"
        self.warnings: tuple[str, ...] = ()
        if images is not None:
            if preprocess is None:
                raise UsageError("--calibration needs a model of images, and this one takes none")
            found = read_images(images, preprocess, ())
            self._images = found.some(MAX_IMAGES)
            self._count = len(self._images)
            self.description = f"{self._count} of {len(found)} images of {found.source}"

    def ranges(self, source: Path, tensors: Sequence[str]) -> Ranges:
        """Run all images through an artifact, and measure tensors of it by name."""
        ranges: dict[str, TensorRange] = defaultdict(TensorRange)
        flat = 0
        runner = OrtRunner(source, provider="cpu", expose=tensors)
        try:
            size = batch_size(runner, BATCH)
            for start in range(0, self._count, size):
                self._progress("calibrate", start, self._count)
                rows = slice(start, start + size)
                if self._images is None or self._preprocess is None:
                    golden = golden_feeds(runner, self._golden, self._preprocess)
                    feeds = {name: values[rows] for name, values in golden.items()}
                else:
                    batch = prepare_batch(self._images.images[rows], self._preprocess)
                    flat += int((np.ptp(batch, axis=(2, 3)) == 0).all(axis=1).sum())
                    feeds = {runner.inputs[0].name: batch}
                outputs = run_filled(runner, feeds)
                for name in tensors:
                    values = np.asarray(outputs[name], np.float32)
                    if not np.isfinite(values).all():
                        raise GateError(
                            f"calibration: tensor {name!r} is not finite on these images, so it "
                            "has no range",
                            hint="run `vit-export validate` on the fp32 artifact",
                        )
                    ranges[name].add(values)
        finally:
            runner.release()
        self._progress("calibrate", self._count, self._count)
        if flat:
            self.warnings = (
                f"{flat} of {self._count} calibration images have one colour only (e.g. black): "
                "the ranges measured on them may be too narrow for real images",
            )
        return Ranges(tensors=dict(ranges), images=self._count)
