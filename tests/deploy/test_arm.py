"""vit-classify on emulated ARM processors: the same golden files, the same classes.

`scripts/test-arm` builds the program and fetches ONNX Runtime for ARM.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from ten_photographs import write_photographs

from vit_export.cli.main import main

pytestmark = pytest.mark.arm

ROOT = Path(__file__).parents[2]
ARM = ROOT / "build" / "arm"
# Raspberry Pi 4; Raspberry Pi 5 and Jetson Orin (nearly), which multiply bytes; and SVE with
# products of byte matrices. Without SME: in QEMU 7.2, ONNX Runtime's INT8 kernels for it are wrong.
PROCESSORS = ("cortex-a72", "cortex-a76", "max,sme=off")
CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def vit_classify(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Runs the program on a processor: `vit_classify("cortex-a72", "model.onnx", ...)`."""
    libraries = tmp_path_factory.mktemp("arm")
    (libraries / "lib").symlink_to("/usr/aarch64-linux-gnu/lib")
    # ONNX Runtime reads it, and ends the process where it describes an x86 processor
    (libraries / "proc").mkdir()
    text = "".join(CPUINFO.format(number=number) for number in range(2))
    (libraries / "proc" / "cpuinfo").write_text(text)

    def run(processor: str, *words: str | Path) -> Done:
        return subprocess.run(
            ["qemu-aarch64", "-cpu", processor, "-L", libraries,
             "-E", f"ONNXRUNTIME_LIBRARY={ARM / 'onnxruntime/onnxruntime/capi'}",
             ARM / "build/examples/vit-classify/vit-classify", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports `"digits"` or `"ti16"` once, and `"digits.int8"` or `"ti16.int8"` from it."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if path.exists():
            return path
        if name.endswith(".int8"):
            words = ["quantize", make(name.removesuffix(".int8")), "--precision", "int8"]
        elif name == "digits":
            words = ["onnx", "--weights", ROOT / "scripts/digits/digits.safetensors"]
        else:
            words = ["onnx", "--variant", name]
        result = CliRunner().invoke(main, [*map(str, words), "-o", str(path)])
        assert result.exit_code == 0, result.output
        return path

    return make


def assert_selftest_passes(done: Done) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["selftest"]
    assert result["passed"]
    assert {row["batch"] for row in result["batches"]} == {1, 2, 3}


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", ["digits", "digits.int8"])
def test_the_digits_model_passes_its_selftest(
    vit_classify: Callable[..., Done], model: Callable[[str], Path], name: str, processor: str
) -> None:
    """In fp32 and INT8, with each generation of ARM's instructions."""
    assert_selftest_passes(vit_classify(processor, model(name), "--selftest", "--json"))


@pytest.mark.parametrize("name", ["ti16", "ti16.int8"])
def test_ti16_passes_its_selftest(
    vit_classify: Callable[..., Done], model: Callable[[str], Path], name: str
) -> None:
    """A model of real size, on a Raspberry Pi 4 or 5."""
    processor = "cortex-a72" if name == "ti16" else "cortex-a76"
    assert_selftest_passes(vit_classify(processor, model(name), "--selftest", "--json"))


def test_photographs_have_the_classes_that_python_computes_on_x86(
    vit_classify: Callable[..., Done], model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Decoded, prepared and classified on ARM."""
    photographs = write_photographs(tmp_path)
    words = [str(model("digits")), *map(str, photographs), "--json"]
    expected = CliRunner().invoke(main, ["predict", "--provider", "cpu", *words])
    done = vit_classify("cortex-a72", *words)
    assert done.returncode == 0, done.stderr
    found, wanted = (json.loads(text.splitlines()[-1])["predictions"]
                     for text in (done.stdout, expected.stdout))  # fmt: skip
    for one, other in zip(found, wanted, strict=True):
        assert [p["index"] for p in one["top"]] == [p["index"] for p in other["top"]]
        assert [p["score"] for p in one["top"]] == pytest.approx(
            [p["score"] for p in other["top"]], abs=1e-5
        )
