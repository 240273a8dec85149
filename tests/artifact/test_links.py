"""Artifacts behind symbolic links, as in a Hugging Face cache or under version control."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vit_export.artifact.golden import Golden, find_golden, golden_path
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import pack
from vit_export.gate.validate import compare
from vit_export.pipeline.export import ExportResult
from vit_export.pipeline.quantize import quantize
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime.onnxruntime import session
from vit_export.runtime.onnxruntime.runner import OrtRunner


def link(folder: Path, file: Path, blob: str) -> None:
    """Move a file of `folder` to a blob elsewhere, and leave a symbolic link in its place."""
    target = folder.parent / blob
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(file, target)
    file.symlink_to(Path("..") / blob)


def linked_artifact(source: ExportResult, folder: Path, layout: str) -> Path:
    """Copy an artifact and replace its files by links.

    Args:
        source: The artifact.
        folder: Where the links go.
        layout: `"inline"` (one file), `"cache"` (weights beside it, both links to one folder),
            `"dvc"` (links to different folders), `"weights"` (only the weights are a link).
    """
    folder.mkdir(parents=True)
    path = folder / "m.onnx"
    file = OnnxFile.read(source.path)
    outputs = [spec.name for spec in file.outputs]
    external = "" if layout == "inline" else "m.onnx.data"
    pack(file, path, metadata=file.metadata, outputs=outputs, external_data=bool(external))
    shutil.copy(source.golden, golden_path(path))
    link(folder, golden_path(path), "store/golden")
    if layout != "weights":
        link(folder, path, "store/ab/model" if layout == "dvc" else "store/model")
    if external:
        link(folder, folder / external, "store/cd/data" if layout == "dvc" else "store/data")
    return path


LAYOUTS = ("inline", "cache", "dvc", "weights")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_linked_artifact_runs_and_passes_its_gate(tiny_export, tmp_path, monkeypatch, layout):
    path = linked_artifact(tiny_export, tmp_path / "app", layout)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    feeds = {"pixel_values": x}
    expected = OrtRunner(tiny_export.path, provider="cpu").run(feeds)["logits"]
    for mapped_from in (session.MAPPED_FROM_BYTES, 0):
        monkeypatch.setattr(session, "MAPPED_FROM_BYTES", mapped_from)
        runner = OrtRunner(path, provider="cpu")
        np.testing.assert_array_equal(runner.run(feeds)["logits"], expected)
    comparison = compare(runner, Golden.read(golden_path(path)))
    assert comparison.passed, comparison.stage.reason
    assert {m.output for m in comparison.stage.measurements} == {"logits", "features"}


@pytest.mark.parametrize(("layout", "precision"), [("inline", "fp16"), ("dvc", "int8")])
def test_a_linked_artifact_is_converted(tiny_export, tmp_path, layout, precision):
    path = linked_artifact(tiny_export, tmp_path / "app", layout)
    made = quantize(path, tmp_path / "q.onnx", settings=QuantizeSettings(precision=precision))
    assert made.comparison.passed


def test_weights_without_a_length_are_found_behind_links(tiny_export, tmp_path):
    path = linked_artifact(tiny_export, tmp_path / "app", "weights")
    file = OnnxFile.read(path)
    length = str(max(tensor.nbytes for tensor in file.initializers)).encode()
    entry = b"\n\x06length\x12" + bytes([len(length)]) + length
    content = path.read_bytes()
    assert entry in content
    path.write_bytes(content.replace(entry, b"\n\x06lengtH\x12" + entry[9:]))
    assert OnnxFile.read(path).initializers != file.initializers
    feeds = {"pixel_values": np.zeros((1, 3, 32, 32), np.float32)}
    np.testing.assert_array_equal(
        OrtRunner(path, provider="cpu").run(feeds)["logits"],
        OrtRunner(tiny_export.path, provider="cpu").run(feeds)["logits"],
    )


def test_the_golden_file_is_found_beside_the_target_of_a_link(tiny_export, tmp_path):
    (tmp_path / "current.onnx").symlink_to(tiny_export.path)
    assert find_golden(tmp_path / "current.onnx").samefile(tiny_export.golden)
