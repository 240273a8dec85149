"""`vit-export embed` gives what `Model.embed` gives, in every form, and names what it cannot do."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from vit_export.cli.main import main
from vit_export.runtime import load


def embed(*words: object) -> Result:
    return CliRunner().invoke(main, ["embed", *map(str, words)])


@pytest.fixture(scope="module")
def expected(tiny_export: Any, photographs: list[Path]) -> Any:
    """Features of two photographs."""
    with load(tiny_export.path, provider="cpu") as model:
        return model.embed(photographs)


def read(path: Path) -> tuple[list[str] | None, Any]:
    """Return names, where the form has them, and rows in float32."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return file["names"].tolist(), file["vectors"]
    if path.suffix == ".npy":
        return None, np.load(path, allow_pickle=False)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()]
        return [x["image"] for x in lines], np.array([x["features"] for x in lines], np.float32)
    header, *lines = csv.reader(text.splitlines())
    assert header[:2] == ["image", "f0"]
    return [line[0] for line in lines], np.array([line[1:] for line in lines], np.float32)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv", ".jsonl", ".NPY"])
def test_every_form_holds_the_same_numbers(suffix, tiny_export, photographs, expected, tmp_path):
    """To the bit of float32, in the order of the images."""
    output = tmp_path / f"features{suffix}"
    result = embed(tiny_export.path, *photographs, "-o", output, "--provider", "cpu", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout.splitlines()[-1])
    assert data["shape"] == list(expected.shape)
    assert data["provider"] == "cpu"
    assert "embeddings" not in data
    renamed = output.rename(output.with_suffix(suffix.lower()))
    names, rows = read(renamed)
    assert names in (None, [str(photo) for photo in photographs])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)


def test_without_an_output_json_has_every_number(tiny_export, photographs, expected):
    """And the text shows where each row begins."""
    result = embed(tiny_export.path, photographs[0].parent, "--normalize", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout.splitlines()[-1])["embeddings"]
    assert [row["image"] for row in data] == [str(photo) for photo in photographs]
    rows = np.array([row["features"] for row in data], np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected / lengths, rtol=1e-5)
    assert "32 numbers, length 1" in result.stderr


def test_an_image_that_cannot_be_read_costs_no_other(tiny_export, photographs, tmp_path):
    """The status is 1, and the file has the rest."""
    broken, output = tmp_path / "broken.jpg", tmp_path / "f.npz"
    broken.write_bytes(b"no picture")
    result = embed(tiny_export.path, broken, photographs[0], "-o", output, "--provider", "cpu")
    assert result.exit_code == 1
    assert "broken.jpg" in result.output
    assert read(output)[0] == [str(photographs[0])]


def test_where_no_image_can_be_read_no_file_is_written(tiny_export, tmp_path):
    broken, output = tmp_path / "broken.jpg", tmp_path / "f.npz"
    broken.write_bytes(b"no picture")
    assert embed(tiny_export.path, broken, "-o", output).exit_code == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("f.parquet", 2, "expected a file that ends in .npz, .npy, .csv, .jsonl"),
        ("features", 2, "expected a file that ends in"),
        ("no/such/f.npz", 1, "there is no folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    name, status, reason, tmp_path
):
    """The artifact does not even exist."""
    result = embed("missing.onnx", "missing.jpg", "-o", tmp_path / name)
    assert result.exit_code == status, result.output
    assert reason in result.output


def test_a_file_without_features_says_how_to_get_them(tiny_export, photographs, tmp_path):
    """An artifact of another tool may lack the tensor."""
    from onnx import load_model, save_model

    model = load_model(tiny_export.path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "features":
                    names[index] = "something"
    path = tmp_path / "other.onnx"
    save_model(model, path)
    result = embed(path, photographs[0])
    assert result.exit_code == 1
    assert "has no tensor 'features'" in result.output
