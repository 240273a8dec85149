"""Folders for a target: complete, certified, and never half written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from vit_export import ExportSettings
from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.deploy import package_cpp
from vit_export.errors import ArtifactError, OutputError, UsageError
from vit_export.images.prepare import prepare_batch
from vit_export.pipeline.export import ExportResult
from vit_export.pipeline.package import package
from vit_export.runtime import load


@pytest.fixture
def artifact(tiny_export: ExportResult, tmp_path: Path) -> Path:
    """The tiny model with labels and its golden file, in a folder of their own."""
    for file in (tiny_export.path, tiny_export.golden):
        shutil.copy(file, tmp_path)
    return tmp_path / tiny_export.path.name


def test_the_folder_holds_the_model_its_golden_file_and_the_library(
    artifact: Path, tmp_path: Path
) -> None:
    """It needs no other file, and the model in it is the one that was certified."""
    result = package(artifact, tmp_path / "made", target="cpp")
    assert result.folder == tmp_path / "made"
    needed = {
        "CMakeLists.txt", "README.md", "example.cpp", "model/tiny.onnx", "model/tiny.golden.npz",
        "model/labels.txt", "model/preprocess.onnx", "vit_export/CMakeLists.txt",
        "vit_export/include/vit_export/vit_export.h",
        "vit_export/include/vit_export/vit_export.hpp",
        "vit_export/examples/vit-classify/vit_classify.cpp",
    }  # fmt: skip
    assert needed <= set(result.files)
    on_disk = {
        path.relative_to(result.folder).as_posix()
        for path in result.folder.rglob("*")
        if path.is_file()
    }
    assert set(result.files) == on_disk
    assert not [name for name in on_disk if "vit_export/package/" in name or ".pyc" in name]
    assert result.size_bytes == sum((result.folder / name).stat().st_size for name in on_disk)
    copied = result.folder / "model/tiny.onnx"
    assert copied.read_bytes() == artifact.read_bytes()
    assert Golden.read(result.folder / "model/tiny.golden.npz").samples > 0
    labels = (result.folder / "model/labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == [f"name {i}" for i in range(10)]


def test_the_graph_of_the_preparation_gives_the_pixels_of_python(
    artifact: Path, tmp_path: Path, photographs: list[Path]
) -> None:
    """To the bit, as an input of the model for programs without the library."""
    folder = package(artifact, tmp_path / "made", target="cpp").folder
    session = onnxruntime.InferenceSession(
        folder / "model/preprocess.onnx", providers=["CPUExecutionProvider"]
    )
    manifest = OnnxFile.read(artifact).manifest
    for photograph in photographs:
        with Image.open(photograph) as image:
            (prepared,) = session.run(None, {"image": np.asarray(image.convert("RGB"))[None]})
        expected = prepare_batch([photograph], manifest.preprocess)
        np.testing.assert_array_equal(prepared, expected)


def test_a_preparation_that_is_no_graph_is_said_in_the_readme(
    artifact: Path, tmp_path: Path
) -> None:
    """And the rest is written."""
    manifest = OnnxFile.read(artifact).manifest
    wide = msgspec.structs.replace(manifest.preprocess, crop_pct=1.2)
    stamp(artifact, manifest.replace(preprocess=wide).metadata())
    folder = package(artifact, tmp_path / "made", target="cpp").folder
    assert not (folder / "model/preprocess.onnx").exists()
    assert "There is no `preprocess.onnx`: --crop-pct 1.2" in (folder / "README.md").read_text()


def test_every_placeholder_of_the_templates_is_replaced(artifact: Path, tmp_path: Path) -> None:
    """The README says what the manifest says."""
    folder = package(artifact, tmp_path / "made", target="cpp").folder
    for name in ("CMakeLists.txt", "README.md", "example.cpp"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "@" not in text, name
    readme = (folder / "README.md").read_text(encoding="utf-8")
    manifest = OnnxFile.read(artifact).manifest
    assert manifest is not None
    assert manifest.weights.source in readme
    assert "32 x 32 RGB, bicubic, center crop 0.9, mean 0.5, 0.5, 0.5" in readme
    stage = manifest.certificate[-1]
    assert f"differs from torch in float64 by at most {stage.max_abs:.2g}" in readme
    assert "project(tiny LANGUAGES CXX)" in (folder / "CMakeLists.txt").read_text()
    assert '"model/tiny.onnx"' in (folder / "example.cpp").read_text()


def test_a_name_with_spaces_and_quotes_is_quoted(artifact: Path, tmp_path: Path) -> None:
    """In the commands of the README, and in the string of the example."""
    for suffix in (".onnx", ".golden.npz"):
        artifact.with_suffix(suffix).rename(tmp_path / f'my "cat"{suffix}')
    folder = package(tmp_path / 'my "cat".onnx', tmp_path / "made", target="cpp").folder
    assert """vit-classify 'model/my "cat".onnx' photo.jpg""" in (folder / "README.md").read_text()
    assert r'"model/my \"cat\".onnx"' in (folder / "example.cpp").read_text()
    assert "project(my__cat_ LANGUAGES CXX)" in (folder / "CMakeLists.txt").read_text()


def test_random_weights_are_named_as_such(
    exported: Callable[..., ExportResult], tmp_path: Path
) -> None:
    """Nobody should deploy them by mistake."""
    from vit_export import export  # by name, so that the manifest says where the weights come from

    path = export("ti16", tmp_path / "a.onnx", settings=ExportSettings(
        overrides={"img_size": 32, "depth": 1})).path  # fmt: skip
    folder = package(path, tmp_path / "made", target="cpp").folder
    assert "random (seed 0): **not trained**" in (folder / "README.md").read_text()
    assert "labels.txt" not in (folder / "README.md").read_text()


def test_a_model_of_features_gets_an_example_that_embeds(
    exported: Callable[..., ExportResult], tmp_path: Path
) -> None:
    """It has no classes."""
    path = exported(settings=ExportSettings(outputs=("features",))).path
    folder = package(path, tmp_path / "made", target="cpp").folder
    assert "model.embed(" in (folder / "example.cpp").read_text()
    assert "photo.jpg --embed" in (folder / "README.md").read_text()


def test_weights_beside_the_file_are_packed_too(
    exported: Callable[..., ExportResult], tmp_path: Path
) -> None:
    """The model in the folder runs alone."""
    path = exported(settings=ExportSettings(external_data=True)).path
    folder = package(path, tmp_path / "made", target="cpp").folder
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with load(path) as original, load(folder / "model" / path.name) as packed:
        assert original.classify(pixels) == packed.classify(pixels)


def test_an_empty_folder_is_filled_and_kept(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the current folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    inode = folder.stat().st_ino
    monkeypatch.chdir(folder)
    package(artifact, ".", target="cpp")
    assert folder.stat().st_ino == inode
    assert (folder / "README.md").is_file()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_folder_with_files_is_refused_and_untouched(artifact: Path, tmp_path: Path) -> None:
    """Nothing of the user's is overwritten or mixed with."""
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="the folder is not empty"):
        package(artifact, folder, target="cpp")
    assert os.listdir(folder) == ["mine.txt"]
    with pytest.raises(OutputError, match="it is no folder"):
        package(artifact, folder / "mine.txt", target="cpp")
    with pytest.raises(OutputError, match="there is no folder") as error:
        package(artifact, tmp_path / "no" / "made", target="cpp")
    assert error.value.hint == f"mkdir -p {tmp_path / 'no'}"


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_nothing_behind(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """The disk is full while files are copied: an existing folder is empty again."""
    folder = tmp_path / "made"
    if exists:
        folder.mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(shutil, "copytree", full)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match="No space left on device; nothing was left behind"):
        package(artifact, folder, target="cpp")
    assert sorted(os.listdir(tmp_path)) == before
    assert folder.exists() is exists
    assert not exists or os.listdir(folder) == []


def test_files_that_cannot_all_be_moved_are_moved_back(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing folder gets all of them or none."""
    folder = tmp_path / "made"
    folder.mkdir()
    rename = Path.rename

    def fails_at_the_readme(self: Path, target: Path) -> Path:
        if self.name == "README.md" and target.parent == folder:
            raise OSError(5, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_at_the_readme)
    with pytest.raises(OutputError, match="Input/output error"):
        package(artifact, folder, target="cpp")
    assert os.listdir(folder) == []


def test_what_cannot_be_packed_is_an_error_that_says_why(artifact: Path, tmp_path: Path) -> None:
    """An engine, another tool's file, a changed file, a missing or damaged golden file."""
    made = tmp_path / "made"
    with pytest.raises(UsageError, match=r"unknown target 'cp'; did you mean 'cpp'\?"):
        package(artifact, made, target="cp")
    with pytest.raises(ArtifactError, match="is an engine"):
        package("b16.engine", made, target="cpp")
    foreign = Path(__file__).parents[1] / "edge/data/edge.onnx"
    content = bytearray(foreign.read_bytes())
    golden = foreign.with_suffix(".golden.npz")
    place = content.index(b"vit_export\x12")  # the key of the manifest
    content[place : place + 3] = b"abc"
    (tmp_path / "foreign.onnx").write_bytes(content)
    shutil.copy(golden, tmp_path / "foreign.golden.npz")
    with pytest.raises(ArtifactError, match="no vit-export manifest"):
        package(tmp_path / "foreign.onnx", made, target="cpp")
    changed = bytearray(artifact.read_bytes())
    weights = max(OnnxFile.read(artifact).initializers, key=lambda tensor: tensor.nbytes)
    changed[weights.offset] ^= 1
    artifact.with_name("changed.onnx").write_bytes(changed)
    with pytest.raises(ArtifactError, match="changed after they were measured"):
        package(artifact.with_name("changed.onnx"), made, target="cpp")
    artifact.with_suffix(".golden.npz").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="not a golden file"):
        package(artifact, made, target="cpp")
    artifact.with_suffix(".golden.npz").unlink()
    with pytest.raises(ArtifactError, match="there is no golden file"):
        package(artifact, made, target="cpp")
    assert not made.exists()


def test_the_cmake_folder_is_a_project() -> None:
    """`package --cmake-dir` prints it."""
    assert "project(vit_export " in (package_cpp.CMAKE_FOLDER / "CMakeLists.txt").read_text()
