"""The program vit-classify prints what `vit-export predict` prints."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from ten_photographs import write_photographs

import vit_export
from vit_export.cli.main import main
from vit_export.images.prepare import prepare_batch

pytestmark = pytest.mark.cpp
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
EDGE = ROOT / "tests" / "edge" / "data"
SLOW = pytest.mark.slow
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def vit_classify(release: Path, run_program: Callable[..., Done]) -> Callable[..., Done]:
    """Runs vit-classify; the words are its command line."""
    return lambda *words: run_program(release / "vit-classify", *words)


@pytest.fixture(scope="session")
def ten(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten photographs: rotated by EXIF, grey, CMYK, with alpha, of 16 bits, ..."""
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def predict(*arguments: str | Path) -> Result:
    """Run `vit-export predict` on the CPU."""
    return CliRunner().invoke(main, ["predict", "--provider", "cpu", *map(str, arguments)])


def last_json(text: str) -> dict[str, Any]:
    """The last line of standard output."""
    return json.loads(text.splitlines()[-1])


def assert_same(found: Any, expected: Any, atol: float = 1e-6) -> None:
    """Equal in keys, their order and values; numbers that are not whole may differ by rounding."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value, atol)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, atol)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=atol)
    else:
        assert found == expected


@pytest.mark.parametrize("name", ["edge.onnx", "edge.int8.onnx", "edge.int8-static.onnx"])
def test_the_json_is_that_of_predict(
    vit_classify: Callable[..., Done], ten: list[Path], name: str
) -> None:
    """Keys, their order, labels and scores; all text is on standard error."""
    artifact = EDGE / name
    done = vit_classify(artifact, *ten, "--top", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert_same(last_json(done.stdout), last_json(predict(artifact, *ten, "--top", "3",
                                                          "--json").stdout))  # fmt: skip
    assert done.stderr.rstrip().endswith("provider: cpu")


def test_the_text_is_that_of_predict(vit_classify: Callable[..., Done], ten: list[Path]) -> None:
    """To the letter."""
    assert vit_classify(EDGE / "edge.onnx", *ten).stdout == predict(EDGE / "edge.onnx", *ten).stdout


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_classified(
    vit_classify: Callable[..., Done], ten: list[Path], tmp_path: Path
) -> None:
    """Exit status 1, and the same JSON as predict."""
    damaged = tmp_path / 'a "damaged" é.jpg'
    damaged.write_bytes(ten[0].read_bytes()[:5000])
    thin = tmp_path / "thin.png"
    thin.write_bytes(b"")
    words = (EDGE / "edge.onnx", ten[0], damaged, tmp_path / "missing.jpg", thin, ten[1])
    done, expected = vit_classify(*words, "--json"), predict(*words, "--json")
    assert done.returncode == expected.exit_code == 1
    found, wanted = last_json(done.stdout), last_json(expected.stdout)
    rows = found["predictions"]
    assert rows[1]["error"] == f"{damaged}: cannot be decoded to 'RGB' (the file is truncated)"
    reason = wanted["predictions"][1]["error"]  # Pillow's words differ
    for data in (found, wanted):
        data["predictions"][1].pop("error")
        data["error"] = data["error"].replace(reason, rows[1].get("error", "")).split("; ")[1:]
    assert_same(found, wanted)


def test_an_image_that_cannot_be_prepared_does_not_stop_the_others(
    vit_classify: Callable[..., Done], ten: list[Path], tmp_path: Path
) -> None:
    """A strip of one pixel: its short side cannot be resized."""
    from PIL import Image

    Image.new("L", (1, 65000)).save(tmp_path / "strip.png")
    words = (EDGE / "edge.onnx", ten[0], tmp_path / "strip.png", ten[1], "--json")
    done, expected = vit_classify(*words), predict(*words)
    assert done.returncode == expected.exit_code
    found, wanted = last_json(done.stdout), last_json(expected.stdout)
    assert [set(row) for row in found["predictions"]] == [set(r) for r in wanted["predictions"]]
    assert_same(found["predictions"][2], wanted["predictions"][2])


def test_wrong_usage_and_unusable_files_have_pythons_exit_status(
    vit_classify: Callable[..., Done], ten: list[Path], tmp_path: Path
) -> None:
    """2 for the command line and unknown names, 1 for files; every error is a sentence."""
    artifact = EDGE / "edge.onnx"
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    for words, status, message in (
        ((), 2, "no model was given"),
        ((artifact,), 2, "no image was given"),
        ((artifact, ten[0], "--tpo", "3"), 2, "no option '--tpo'; did you mean '--top'?"),
        ((artifact, ten[0], "--top", "0"), 2, "--top '0': expected a whole number of at least 1"),
        ((artifact, ten[0], "--top=5x"), 2, "--top '5x': expected a whole number"),
        ((artifact, ten[0], "--top"), 2, "--top: expected a value after it"),
        ((artifact, ten[0], "--threads", "257"), 2, "expected a whole number 1 to 256"),
        ((artifact, ten[0], "--json=yes"), 2, "--json takes no value"),
        ((artifact, ten[0], "--provider", "cudaa"), 2, "'cudaa'; did you mean 'cuda'"),
        ((artifact, ten[0], "--provider="), 2, "unknown provider ''"),
        (("", ten[0]), 2, "path is empty"),
        ((EDGE / "edge.op.onnx", "--bench", "1"), 2, "edge.op.onnx: --bench needs an image"),
        ((tmp_path, ten[0]), 1, "is a folder, expected a file"),
        ((artifact, ten[0], "--provider", "cuda"), 1, "cuda"),
        ((tmp_path / "missing.onnx", ten[0]), 1, "missing.onnx"),
        ((tmp_path / "no.onnx", ten[0]), 1, "no.onnx"),
    ):
        done = vit_classify(*words)
        assert done.returncode == status, (words, done.stderr)
        assert done.stdout == ""
        first = done.stderr.splitlines()[0]
        assert first.startswith("Error: ")
        assert message in first
    as_json = vit_classify(artifact, ten[0], "--tpo", "3", "--json")
    assert last_json(as_json.stdout)["error"] == "no option '--tpo'; did you mean '--top'?"


def test_help_and_version_are_printed(vit_classify: Callable[..., Done]) -> None:
    """With exit status 0."""
    text = vit_classify("--help").stdout
    flags = ("--top", "--provider", "--threads", "--json", "--embed", "--selftest", "--bench")
    assert [flag for flag in flags if f"\n  {flag}" not in text] == []
    assert max(map(len, text.splitlines())) <= 80
    assert vit_classify("--version").stdout == f"vit-classify, version {vit_export.__version__}\n"


def test_options_end_at_two_dashes(
    vit_classify: Callable[..., Done], ten: list[Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """So that a file may be named like an option."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ten[0], "--top")
    done = vit_classify("--json", EDGE / "edge.onnx", "--", "--top")
    assert last_json(done.stdout)["predictions"][0]["image"] == "--top"
    done = vit_classify(EDGE / "edge.onnx", "--", "--json")
    assert (done.returncode, done.stdout) == (1, "provider: cpu\n")


def test_features_are_those_of_embed(vit_classify: Callable[..., Done], ten: list[Path]) -> None:
    """One row per image, in full precision."""
    done = vit_classify(EDGE / "edge.onnx", *ten, "--embed", "--json")
    rows = last_json(done.stdout)["embeddings"]
    assert [row["image"] for row in rows] == list(map(str, ten))
    with vit_export.load(EDGE / "edge.onnx", provider="cpu") as model:
        features = model.embed(ten)
    found = np.array([row["features"] for row in rows])
    np.testing.assert_allclose(found, features, rtol=0, atol=1e-5)


def test_the_selftest_passes_and_notices_another_golden_file(
    vit_classify: Callable[..., Done], ten: list[Path], tmp_path: Path
) -> None:
    """It needs no image, and comes before any classification."""
    done = vit_classify(EDGE / "edge.onnx", "--selftest", "--json")
    assert done.returncode == 0, done.stderr
    result = last_json(done.stdout)["selftest"]
    assert result["passed"]
    assert 0 < result["max_abs"] <= result["tolerance"]
    assert {row["batch"] for row in result["batches"]} == {1, 2, 3}
    assert done.stderr.startswith("selftest passed: logits max abs ")
    shutil.copy(EDGE / "edge.onnx", tmp_path)
    shutil.copy(EDGE / "edge.int8.golden.npz", tmp_path / "edge.golden.npz")
    golden = dict(np.load(EDGE / "edge.golden.npz"))
    golden["output.logits"] = golden["output.logits"][::-1]
    np.savez(tmp_path / "edge.golden.npz", **golden)
    done = vit_classify(tmp_path / "edge.onnx", ten[0], "--selftest", "--json")
    assert done.returncode == 1
    data = last_json(done.stdout)
    assert not data["selftest"]["passed"]
    assert "does not compute what its torch model computes" in data["error"]
    assert "predictions" not in data
    golden = {n: a for n, a in golden.items() if not n.endswith(".features")}
    golden["block.names"] = np.array([*golden["block.names"][:-1], "elsewhere"])
    np.savez(tmp_path / "edge.golden.npz", **golden)
    done = vit_classify(tmp_path / "edge.onnx", "--selftest", "--json")
    note = "elsewhere: not measured, the graph has no tensor of that name"
    assert last_json(done.stdout)["selftest"]["notes"] == note
    assert f"note: {note}\n" in done.stderr
    (tmp_path / "edge.golden.npz").unlink()
    done = vit_classify(tmp_path / "edge.onnx", "--selftest")
    assert done.returncode == 1
    assert "there is no golden file edge.golden.npz beside it" in done.stderr
    assert "hint: copy the golden file" in done.stderr


def test_bench_times_an_image_or_the_model_alone(
    vit_classify: Callable[..., Done], ten: list[Path]
) -> None:
    """Smallest, mean, median and 90th percentile of as many runs as asked for."""
    for words, what in (((ten[0],), f"classify {ten[0]}"), ((), "run of zeros")):
        done = vit_classify(EDGE / "edge.onnx", *words, "--bench", "7", "--threads", "1", "--json")
        assert done.returncode == 0, done.stderr
        result = last_json(done.stdout)["bench"]
        assert (result["what"], result["runs"], result["threads"]) == (what, 7, 1)
        assert 0 < result["min_ms"] <= result["median_ms"] <= result["p90_ms"]


def test_percentiles_of_two_runs_lie_between_them(
    vit_classify: Callable[..., Done], ten: list[Path]
) -> None:
    """As in NumPy."""
    done = vit_classify(EDGE / "edge.onnx", ten[0], "--bench", "2", "--json")
    result = last_json(done.stdout)["bench"]
    largest = 2 * result["mean_ms"] - result["min_ms"]
    assert result["median_ms"] == pytest.approx(result["mean_ms"])
    assert result["p90_ms"] == pytest.approx(0.1 * result["min_ms"] + 0.9 * largest)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Exports a model once, and converts it to INT8 once."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, precision: str) -> Path:
        if name == "edge":
            return EDGE / ("edge.onnx" if precision == "fp32" else f"edge.{precision}.onnx")
        path = folder / f"{name}.onnx"
        if not path.exists():
            digits = str(ROOT / "scripts/digits/digits.safetensors")
            kind, _, preprocess = name.partition("-")
            source = ["--weights", digits] if kind == "digits" else ["--variant", kind]
            source += ["--preprocess", preprocess or "none"]
            result = CliRunner().invoke(main, ["onnx", *source, "-o", str(path)])
            assert result.exit_code == 0, result.output
        if precision == "fp32":
            return path
        narrow = folder / f"{name}.{precision}.onnx"
        if not narrow.exists():
            result = CliRunner().invoke(
                main, ["quantize", str(path), "--precision", precision, "-o", str(narrow)]
            )
            assert result.exit_code == 0, result.output
        return narrow

    return make


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["edge", "digits", "ti16", pytest.param("b16", marks=SLOW)])
def test_ten_photographs_have_the_logits_that_python_computes(
    release: Path,
    run_program: Callable[..., Done],
    made: Callable[[str, str], Path],
    ten: list[Path],
    name: str,
    precision: str,
) -> None:
    """Within 1e-5, and the same top 5, from file to logits."""
    artifact = made(name, precision)
    done = run_program(release / "image_logits", artifact, *ten)
    assert done.returncode == 0, done.stderr
    found = np.array([line.split() for line in done.stdout.splitlines()], dtype=np.float64)
    with vit_export.load(artifact, provider="cpu") as model:
        assert model.preprocess is not None
        expected = [model(prepare_batch([path], model.preprocess))["logits"][0] for path in ten]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    best = [np.argsort(-row, kind="stable")[:5].tolist() for row in found]
    assert best == [np.argsort(-row, kind="stable")[:5].tolist() for row in expected]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "name", ["digits-embedded", "ti16-embedded", pytest.param("b16-embedded", marks=SLOW)]
)
def test_a_graph_that_prepares_images_itself_gives_pythons_logits(
    vit_classify: Callable[..., Done],
    made: Callable[[str, str], Path],
    ten: list[Path],
    name: str,
    precision: str,
) -> None:
    """Photographs go into the graph as they are; the logarithms of all scores show the logits."""
    words = (made(name, precision), *ten, "--top", "1000", "--json")
    done = vit_classify(*words)
    assert done.returncode == 0, done.stderr
    rows, others = (
        last_json(text)["predictions"] for text in (done.stdout, predict(*words).stdout)
    )
    for row, other in zip(rows, others, strict=True):
        assert [p["label"] for p in row["top"][:5]] == [p["label"] for p in other["top"][:5]]
        found, expected = (np.log([score for _, score in sorted((p["index"], p["score"])
                                   for p in one["top"])]) for one in (row, other))  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
