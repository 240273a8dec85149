"""The original libraries, imported before the tests that need them, and commands run for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from originals import randomised  # noqa: F401  (a fixture)
from PIL import Image

from vit_export.cli.main import main
from vit_export.images.prepare import prepare_batch
from vit_export.runtime import load

Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `vit-export onnx ... -o x.onnx` in a folder of its own."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, ["onnx", *map(str, words), "-o", str(tmp_path / "x.onnx")])

    return run


def check_pixels(preprocess: Any, pixels: Callable[[Image.Image], Any], photo: Path) -> Any:
    """Compare a prepared photograph with a library's own, and return it: float32 (1, C, H, W)."""
    image = Image.open(photo).convert("RGB")
    assert image.width != image.height
    expected, prepared = np.asarray(pixels(image)), prepare_batch([image], preprocess)
    scale = 255 * np.array(preprocess.std)[:, None, None]
    assert np.abs((prepared[0] - expected) * scale).max() < 1e-3  # of a level
    return prepared


@pytest.fixture
def same_pixels(photographs: list[Path]) -> Callable[..., None]:
    """Compares a preparation with a library's own on photographs."""

    def check(preprocess: Any, pixels: Callable[[Image.Image], Any]) -> None:
        for photo in photographs:
            check_pixels(preprocess, pixels, photo)

    return check


@pytest.fixture
def agrees(tmp_path: Path, photographs: list[Path]) -> Callable[..., dict[str, Any]]:
    """Compares the written file with an original: its pixels, and its outputs in float64.

    Returns the manifest. `original` takes images in float64, `pixels` a Pillow image.
    """

    def check(
        original: Callable[[torch.Tensor], torch.Tensor],
        pixels: Callable[[Image.Image], Any],
        output: str = "logits",
    ) -> dict[str, Any]:
        with load(tmp_path / "x.onnx", provider="cpu") as model:
            assert model.manifest is not None
            assert model.preprocess is not None
            assert [spec.name for spec in model.runner.outputs] == [output]
            for photo in photographs:
                prepared = check_pixels(model.preprocess, pixels, photo)
                with torch.no_grad():
                    y64 = original(torch.from_numpy(prepared).double()).numpy()
                stage = model.manifest.certificate[-1]
                assert stage.passed
                limit = max(m.tolerance for m in stage.measurements if m.output == output)
                assert np.abs(model.run(prepared) - y64).max() <= limit
                assert np.abs(y64).max() > 100 * limit
            return json.loads(model.manifest.to_json())

    return check
