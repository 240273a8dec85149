"""The C++ library against Python, on the small artifacts of tests/edge."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from control_groups import MACHINES, make_machine

import vit_export
from vit_export.artifact.golden import Golden, golden_path
from vit_export.deploy.package_cpp import CMAKE_FOLDER
from vit_export.errors import ProviderError, nearest
from vit_export.gate.validate import compare
from vit_export.runtime import feed

pytestmark = pytest.mark.cpp
HERE = Path(__file__).parent
EDGE = HERE.parents[1] / "edge" / "data"
ARTIFACTS = (
    *("edge.onnx", "edge.fp16.onnx", "edge.int8.onnx", "edge.int8-static.onnx"),
    *("edge.op.onnx", "edge.matmul.onnx"),  # these prepare images themselves
)
Probe = Callable[..., str]


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
    batches = {tuple(line.split()[:2]) for line in rest[:-1]}
    assert batches == {(m.output, str(m.batch)) for m in expected.measurements}


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


def test_the_version_of_the_library_is_that_of_the_package() -> None:
    text = (CMAKE_FOLDER / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"project(vit_export VERSION {vit_export.__version__} " in text
