"""libFuzzer on the readers of golden files, manifests and ONNX files: 20 seconds each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vit_export.artifact.onnx_reader import OnnxFile

pytestmark = pytest.mark.cpp
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MODEL = ROOT / "tests" / "edge" / "data" / "edge.int8.onnx"
SECONDS = os.environ.get("FUZZ_SECONDS", "20")


@pytest.fixture(scope="session")
def fuzzers() -> Path:
    """Folder of the fuzzers, built with clang."""
    compilers = ("clang++", *(f"clang++-{version}" for version in range(22, 13, -1)))
    compiler = next((name for name in compilers if shutil.which(name)), None)
    if compiler is None or shutil.which("cmake") is None:
        pytest.skip("no clang on this machine, which has libFuzzer: scripts/test-cpp installs it")
    folder = ROOT / "build" / "cpp" / "fuzz"
    for words in (
        ("cmake", "-S", HERE / "fuzz", "-B", folder, f"-DCMAKE_CXX_COMPILER={compiler}"),
        ("cmake", "--build", folder, "--parallel", "2"),
    ):
        child = subprocess.run([*words], capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stdout + child.stderr
    return folder


def write_seeds(reader: str, folder: Path) -> None:
    """Write small valid files from which a fuzzer starts."""
    text = OnnxFile.read(MODEL).metadata["vit_export"]
    if reader == "onnx":
        shutil.copy(MODEL, folder)
    elif reader == "manifest":
        small = {k: v for k, v in json.loads(text).items() if k not in ("certificate", "config")}
        (folder / "small").write_text(json.dumps(small), encoding="utf-8")
    else:
        random = np.random.default_rng(0)
        arrays = {
            "images": random.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8),
            "output.logits": random.normal(size=(2, 3)),
            "output.features": np.asfortranarray(random.normal(size=(2, 2))),
            "e32.logits": np.float64(1e-6),
            "e32.features": np.float64(1e-6),
            "block.names": np.array(["a", "b"]),
            "block.indices": np.zeros((2, 3), np.int64),
            "block.values": random.normal(size=(2, 2, 3)),
            "block.e32": np.full(2, 1e-6),
        }
        with (folder / "small").open("wb") as stream:
            np.savez(stream, **arrays)


@pytest.mark.parametrize("reader", ["golden", "manifest", "onnx"])
def test_no_bytes_crash_a_reader(fuzzers: Path, reader: str, tmp_path: Path) -> None:
    corpus, seeds = tmp_path / "corpus", tmp_path / "seeds"
    corpus.mkdir()
    seeds.mkdir()
    write_seeds(reader, seeds)
    child = subprocess.run(
        [
            fuzzers / f"fuzz_{reader}", f"-max_total_time={SECONDS}", "-rss_limit_mb=1024",
            "-timeout=20", "-max_len=100000", f"-artifact_prefix={tmp_path}/", corpus, seeds,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert any(corpus.iterdir()), "the fuzzer found no input that reaches new code"
