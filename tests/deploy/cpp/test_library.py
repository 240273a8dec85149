"""The C++ library against Python, on the small artifacts of tests/edge."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from control_groups import MACHINES, make_machine

import vit_export
from vit_export.artifact.golden import Golden, golden_path
from vit_export.artifact.vocabulary import SCORE_OUTPUTS
from vit_export.deploy.package_cpp import CMAKE_FOLDER
from vit_export.errors import InputError, ProviderError, nearest
from vit_export.gate.distance import Measured, Reference
from vit_export.gate.scores import score_failures, softmax
from vit_export.gate.tolerances import tolerances_of
from vit_export.gate.validate import compare
from vit_export.pipeline.export import ExportResult
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime import feed
from vit_export.runtime.onnxruntime.threads import SPINNING, STOP_SPINNING, default_threads

pytestmark = pytest.mark.cpp
HERE = Path(__file__).parent
EDGE = HERE.parents[1] / "edge" / "data"
ARTIFACTS = (
    *("edge.onnx", "edge.fp16.onnx", "edge.int8.onnx", "edge.int8-static.onnx"),
    *("edge.op.onnx", "edge.matmul.onnx"),  # these prepare images themselves
)
Probe = Callable[..., str]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def probe(
    release: Path,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> Probe:
    """Calls the library through the program `probe`, which must succeed; returns its output."""
    program = release / "probe"

    def run(*words: str | Path, status: int = 0, **variables: str) -> str:
        child = run_program(program, *words, **variables)
        assert child.returncode == status, child.stdout + child.stderr
        return child.stdout

    return run


@pytest.mark.parametrize("name", ARTIFACTS)
def test_the_selftest_measures_what_the_gate_measures(probe: Probe, name: str) -> None:
    artifact = EDGE / name
    model = vit_export.load(artifact, provider="cpu")
    expected = compare(model.runner, Golden.read(golden_path(artifact))).stage
    first, *rest = probe(artifact, "selftest").splitlines()
    verdict, output, max_abs, tolerance, cosine, row_max_abs = first.split()
    assert (verdict, output) == ("passed", "logits")
    assert expected.passed
    assert float(tolerance) == pytest.approx(
        -1 if expected.tolerance is None else expected.tolerance, rel=1e-6
    )
    found = [max_abs, cosine, row_max_abs]
    wanted = [expected.max_abs, expected.cosine, expected.row_max_abs]
    assert [*map(float, found)] == pytest.approx(wanted, rel=1e-3, abs=1e-7)
    batches = {tuple(line.split()[:2]) for line in rest[:-2]}
    prepares = {("pixel_values", "1")} if model.manifest.embedded else set()
    assert batches == {(m.output, str(m.batch)) for m in expected.measurements} | prepares


def test_the_selftest_measures_how_a_graph_prepares_images(probe: Probe, tmp_path: Path) -> None:
    """A provider that resizes otherwise gives the right logits of images of the model's size."""
    graph = onnx.load(EDGE / "edge.op.onnx")
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Resize" and attribute.name == "mode":
                attribute.s = b"linear"
    onnx.save(graph, tmp_path / "other.onnx")
    *_, reason = probe(
        tmp_path / "other.onnx", "selftest", EDGE / "edge.op.golden.npz"
    ).splitlines()
    assert reason.startswith("reason of an image of 65x95 px, a pixel differs from Pillow's by ")


@pytest.mark.parametrize("name", ARTIFACTS)
def test_images_of_several_sizes_are_classified_as_in_python(
    probe: Probe, name: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    shapes = [(48, 64, 3), (32, 32, 3), (100, 33, 1), (40, 40, 4), (1, 7, 3)]
    images = [random.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    words: list[str | Path] = []
    for i, image in enumerate(images):
        image.tofile(tmp_path / f"{i}.raw")
        words += [tmp_path / f"{i}.raw", *map(str, image.shape)]
    with vit_export.load(EDGE / name, provider="cpu") as model:
        expected = model.classify(images, top=3)
        features = model.embed(images)
    lines = probe(EDGE / name, "classify", "3", *words).split("image\n")[1:]
    for block, predictions in zip(lines, expected, strict=True):
        rows = [line.split(" ", 2) for line in block.splitlines()]
        assert [(int(i), label) for i, _, label in rows] == [
            (p.index, p.label) for p in predictions
        ]
        scores = [float(score) for _, score, _ in rows]
        assert scores == pytest.approx([p.score for p in predictions], abs=1e-6)
    rows = [line.split()[1:] for line in probe(EDGE / name, "embed", *words).splitlines()]
    np.testing.assert_allclose(np.array(rows, dtype=np.float64), features, rtol=0, atol=1e-5)


def test_tokens_are_measured_too(probe: Probe, exported: Callable[..., ExportResult]) -> None:
    """The golden file records them like a block."""
    artifact = exported(settings=ExportSettings(outputs=("logits", "tokens"))).path
    lines = probe(artifact, "selftest").splitlines()
    assert lines[0].startswith("passed logits ")
    assert [line.split()[0] for line in lines[1:-2]].count("tokens") == 3  # batches


def test_a_model_is_not_created_where_its_selftest_fails(probe: Probe, tmp_path: Path) -> None:
    shutil.copy(EDGE / "edge.onnx", tmp_path)
    arrays = dict(np.load(EDGE / "edge.golden.npz"))
    arrays["output.logits"] = arrays["output.logits"] + 1
    np.savez(tmp_path / "edge.golden.npz", **arrays)
    found = probe(tmp_path / "edge.onnx", "manifest", status=1, PROBE_SELFTEST="1")
    assert found.startswith("error 3: edge.onnx: logits at batch 1: max|y - y64| = ")
    assert probe(EDGE / "edge.onnx", "manifest", PROBE_SELFTEST="1").startswith("vit_edge_test")


def test_an_image_of_a_dynamic_size_has_whole_patches(
    probe: Probe, exported: Callable[..., ExportResult], tmp_path: Path
) -> None:
    artifact = exported(settings=ExportSettings(dynamic_size=True)).path
    pixel_values = np.zeros((1, 3, 40, 36), dtype=np.float32)
    pixel_values.tofile(tmp_path / "values")
    with vit_export.load(artifact, provider="cpu") as model, pytest.raises(InputError) as error:
        model(pixel_values)
    found = probe(artifact, "run", "1", "40", "36", tmp_path / "values", status=1)
    assert found.splitlines()[0] == f"error 5: {error.value.message}"
    pixel_values[:, :, :, :32].tofile(tmp_path / "values")
    assert probe(artifact, "run", "1", "40", "32", tmp_path / "values").startswith("logits 1 ")


def test_the_limits_of_the_gate_are_those_of_python(release: Path, run_program: Run) -> None:
    for line in run_program(release / "gate", "tolerances").stdout.splitlines():
        precision, baseline, *numbers = line.split()
        wanted = tolerances_of(precision, source="")
        assert baseline == (wanted.baseline or "none")
        optional = (wanted.min_cosine, wanted.max_scale_error, wanted.row_share)
        limits = [-1 if limit is None else limit for limit in optional]
        assert [*map(float, numbers)] == [wanted.factor, wanted.floor, wanted.cap, *limits]


def test_nan_counts_where_the_golden_file_keeps_no_element(release: Path, run_program: Run) -> None:
    found = run_program(release / "gate", "measured").stdout.strip()
    reference = Reference(np.array([[1.0, 3]]), np.array([0, 2]), None, None, None, None, None)
    output = np.array([[1, np.nan, 3, np.inf]], dtype=np.float32)
    assert found == Measured(reference).add([0], output) == "holds 2 NaN or infinite values"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("error", [5e-7, 1e-4, 0.1])
def test_scores_may_be_as_far_from_the_logits_as_in_python(
    release: Path, run_program: Run, dtype: str, error: float
) -> None:
    logits = np.array([[1.5, -2, 0.25]], dtype=dtype)
    probabilities = (softmax(logits.astype(np.float64)) + error).astype(np.float32)
    empty = np.zeros((1, 0))
    outputs = dict(zip(SCORE_OUTPUTS, (probabilities, empty, empty), strict=True))
    wanted = [*score_failures({"logits": logits} | outputs, "softmax")]
    numbers = [str(float(x)) for x in (*logits[0], *probabilities[0])]
    found = run_program(release / "gate", "scores", dtype, "softmax", *numbers).stdout.split("\n")
    assert found[:-1] == (wanted or [""])


def test_a_file_that_is_missing_is_an_error_with_its_name(probe: Probe) -> None:
    assert probe("no.onnx", "manifest", status=1) == "error 2: no.onnx: no such file\n"


def test_as_many_images_run_at_once_as_in_python() -> None:
    text = (CMAKE_FOLDER / "src/feed.cpp").read_text(encoding="utf-8")
    for name, value in (
        ("kMostPrepared", feed.MAX_BATCH),
        ("kPreparedPerCpu", feed.IMAGES_PER_CPU),
        ("kMostWhole", feed.MAX_WHOLE),
        ("kMostWholeBytes", feed.MAX_WHOLE_BYTES),
    ):
        found = re.search(rf" {name} = (?:(1)u << )?(\d+);", text)
        assert found, name
        assert (1 << int(found[2]) if found[1] else int(found[2])) == value


def test_idle_threads_spin_as_long_as_in_python() -> None:
    text = (CMAKE_FOLDER / "src/session.cpp").read_text(encoding="utf-8")
    assert f' kSpinning = "{SPINNING}";' in text
    assert f' kStopSpinning = "{STOP_SPINNING}";' in text
    assert default_threads(others_open=True)[SPINNING] == "0"


def test_quotas_of_control_groups_are_read_as_in_python(
    release: Path,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """They decide how many threads start and how many images run at once."""
    roots = [
        make_machine(tmp_path / str(number), cgroup, files)
        for number, (cgroup, files, *_) in enumerate(MACHINES)
    ]
    found = run_program(release / "quota", *roots).stdout.split()
    assert [*map(float, found)] == [quota or 0.0 for _, _, quota, _ in MACHINES]


@pytest.mark.parametrize("word", ["cudaa", "CUDA", "tensort", "openvinno", "trt", "rt", "xyz", ""])
def test_a_mistyped_provider_gets_the_names_that_python_suggests(probe: Probe, word: str) -> None:
    found = probe(EDGE / "edge.onnx", "manifest", status=1, PROBE_PROVIDER=word)
    known = found.partition("(known: ")[2].partition(";")[0].split(", ")
    assert found.startswith(f"error 1: unknown provider '{word}'{nearest(word, known)} (known: ")


def test_onnxruntimes_name_of_a_provider_counts_too(probe: Probe) -> None:
    words = (EDGE / "edge.onnx", "selftest")
    assert probe(*words, PROBE_PROVIDER="CPUExecutionProvider").startswith("passed ")


def test_tensorrt_takes_no_graph_that_prepares_images(probe: Probe) -> None:
    artifact = EDGE / "edge.op.onnx"
    with pytest.raises(ProviderError) as error:
        vit_export.load(artifact, provider="tensorrt")
    found = probe(artifact, "manifest", status=1, PROBE_PROVIDER="tensorrt")
    assert found.splitlines()[0] == f"error 4: {error.value.message}"


def test_a_call_costs_little_beyond_a_bare_session(
    release: Path, run_program: Run, onnxruntime_library: Path
) -> None:
    """Most of it is the preparation, which both do; the model is small."""
    (library,) = onnxruntime_library.glob("libonnxruntime.so.*")
    child = run_program(
        release / "overhead", EDGE / "edge.onnx", "60", ONNXRUNTIME_LIBRARY=str(library)
    )
    assert child.returncode == 0, child.stdout + child.stderr
    words, _, least = child.stdout.splitlines()[-1].split()
    assert words == "ratio"
    assert float(least) < 1.2


def test_the_version_of_the_library_is_that_of_the_package() -> None:
    text = (CMAKE_FOLDER / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"project(vit_export VERSION {vit_export.__version__} " in text
