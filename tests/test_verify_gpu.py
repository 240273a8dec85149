"""scripts/verify_gpu on a machine without a GPU, and its checks on the CPU in the GPU's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_export import runtime
from vit_export.model.vit import create_model
from vit_export.variants import get_variant

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "verify_gpu"


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    """As the script does it."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Whatever provider a check asks for, the CPU runs it; and torch believes in its GPU."""
    from gpu_checks import cuda, speed, tensorrt

    def load_on_the_cpu(path, *, provider="auto", options=None):
        return load(path, provider="cpu")

    load = runtime.load
    monkeypatch.setattr(runtime, "load", load_on_the_cpu)
    for module in (cuda, speed, tensorrt):
        for name in ("need_cuda_wheel", "need_tensorrt_provider"):
            monkeypatch.setattr(module, name, lambda: None, raising=False)
    monkeypatch.setitem(tensorrt.NEEDS, "tensorrt", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for module in (cuda, speed):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    for name, value in {"BATCHES": (1, 2), "PEAK_SIZE": 64, "WARMUP_RUNS": 1, "TIMED_RUNS": 2,
                        "TIMED_S": 0}.items():  # fmt: skip
        monkeypatch.setattr(speed, name, value)


def run(*arguments: str | Path, bare: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the script where no GPU can be seen; `bare` without any package."""
    command = [sys.executable, *(["-S"] if bare else []), SCRIPT, *arguments]
    return subprocess.run(
        list(map(str, command)), env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("bare", [False, True])
def test_without_a_gpu_every_check_is_listed_as_not_run(tmp_path, bare):
    """With all packages and with none; and the exit status is not that of success."""
    from gpu_checks.plan import checks

    done = run("-o", tmp_path, "--folder", tmp_path / "artifacts", bare=bare)
    assert done.returncode == 3, done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert [check["name"] for check in found["checks"]] == [check.name for check in checks()]
    assert {check["status"] for check in found["checks"]} == {"not run"}
    assert all(check["why"].startswith("no NVIDIA GPU: ") for check in found["checks"])
    text = (tmp_path / "report.md").read_text()
    for check in checks():
        assert check.name in done.stdout
        assert f"| {check.name} | not run |" in text
    assert f"0 passed, 0 FAILED, {len(checks())} not run" in done.stdout


def test_every_check_has_a_name_of_its_own():
    """A child process finds its check by it."""
    from gpu_checks.plan import checks

    names = [check.name for check in checks(("ti16", "s16"))]
    assert len(names) == len(set(names))
    assert "cuda parity s16 fp16" in names


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cuda parity edge fp32", "not installed: onnxruntime-gpu (the wheel for the CPU is)"),
        ("cuda graph edge", "not installed: onnxruntime-gpu (the wheel for the CPU is)"),
        ("tensorrt context dump", "not installed: onnxruntime-gpu (the wheel for the CPU is)"),
        ("tensorrt-rtx parity edge fp32", "not installed: onnxruntime_ep_nv_tensorrt_rtx"),
        ("matmul peak, float16", "the installed torch has no CUDA"),
        ("speed torch eager b16 fp16", "the installed torch has no CUDA"),
    ],
)
def test_a_check_without_its_package_is_not_run_and_says_which(tmp_path, name, why):
    """Also where there is a GPU; here each is asked alone."""
    done = run("--only", name, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert (outcome["status"], outcome["why"]) == ("not run", why)


def child(monkeypatch, tmp_path, code: str, timeout_s: float = 20):
    """What becomes of a check whose process does this."""
    import importlib.machinery
    import importlib.util

    from gpu_checks.outcome import Check

    loader = importlib.machinery.SourceFileLoader("verify_gpu", str(SCRIPT))
    spec = importlib.util.spec_from_loader("verify_gpu", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(code)
    monkeypatch.setattr(module, "__file__", str(stand_in))
    monkeypatch.setattr(sys, "argv", [str(stand_in)])
    return module.run_one(Check("a check", print), timeout_s)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('odd')", "ValueError: odd (exit status 1)"),
        ("import os; os.abort()", "it said nothing (exit status -6)"),
        ("pass", "it said nothing (exit status 0)"),
    ],
)
def test_a_check_that_ends_by_itself_has_failed(monkeypatch, tmp_path, code, why):
    """A crash of a driver is no pass, and does not end the others."""
    outcome = child(monkeypatch, tmp_path, code)
    assert (outcome.status, outcome.why) == ("FAILED", why)


def test_a_check_that_hangs_has_failed(monkeypatch, tmp_path):
    """After its time."""
    outcome = child(monkeypatch, tmp_path, "import time; time.sleep(60)", timeout_s=0.5)
    assert (outcome.status, outcome.why) == ("FAILED", "no answer within 0 s")


def test_the_exit_status_is_0_only_when_something_ran_and_nothing_failed():
    """Nothing that ran is not a success."""
    from gpu_checks.outcome import FAILED, NOT_RUN, PASSED, Outcome
    from gpu_checks.report import exit_status

    def status(*found: str) -> int:
        return exit_status([Outcome(str(i), each) for i, each in enumerate(found)])

    assert status(PASSED, NOT_RUN) == 0
    assert status(PASSED, FAILED, NOT_RUN) == 1
    assert status(NOT_RUN) == status() == 3


def test_the_report_shows_speeds_as_shares_of_the_measured_peak(tmp_path):
    """From outcomes as the checks return them."""
    from gpu_checks.outcome import FAILED, NOT_RUN, PASSED, Outcome
    from gpu_checks.report import to_text, write

    times = {"batch_1_ms": 2.0, "batch_1_images_per_s": 500.0, "batch_64_ms": 16.0,
             "batch_64_images_per_s": 4000.0, "tflops": 140.0, "cosine": 0.99999}  # fmt: skip
    outcomes = [
        Outcome("matmul peak, float16", PASSED, measured={"peak_tflops": 700.0}, seconds=3.0),
        Outcome("speed torch eager b16 fp16", PASSED, measured=times, seconds=9.0),
        Outcome("speed engine tensorrt b16 fp16", NOT_RUN, "not installed: tensorrt"),
        Outcome("cuda parity ti16 fp32", FAILED, "the gate did not pass: max|y - y64| = 1"),
    ]
    json_path, markdown_path = write(tmp_path, {"GPU 0": "NVIDIA H100"}, outcomes)
    text = markdown_path.read_text()
    assert "| torch eager b16 fp16 | 2 | 16 | 4000 | 20 % | 1 |" in text
    assert "| engine tensorrt b16 fp16 | not run | not run | - | - | - |" in text
    assert r"| cuda parity ti16 fp32 | FAILED | the gate did not pass: max\|y - y64\| = 1 |" in text
    assert "- GPU 0: NVIDIA H100" in text
    assert "2 passed, 1 FAILED, 1 not run" in to_text(outcomes)
    found = json.loads(json_path.read_text())
    assert found["peak_tflops"] == 700.0
    assert found["checks"][1]["measured"] == times


@pytest.mark.parametrize("variant", ["mnist", "deit_ti", "b32"])
def test_the_products_of_a_variant_are_counted_as_torch_counts_them(variant):
    """Convolution of the patches included; torch's counter sees the real module run."""
    from gpu_checks.speed import flops_per_image

    config = get_variant(variant).replace({"depth": 2})
    model = create_model(config)
    x = torch.zeros(1, config.in_chans, *config.image_hw)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(x)
    assert flops_per_image(config) == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
def test_the_speed_of_every_candidate_is_measured_alike(tmp_path, monkeypatch):
    """On the CPU in the GPU's place, and an fp32 artifact in that of the fp16 one."""
    from gpu_checks import artifacts, speed

    monkeypatch.setattr(
        speed, "exported", lambda folder, variant, _: artifacts.exported(folder, variant)
    )
    (tmp_path / "mnist.fp16.tensorrt.engine").touch()
    monkeypatch.setattr(speed, "engine_path", lambda folder, *_: folder / "mnist.fp32.onnx")
    for measured in (
        speed.torch_eager(tmp_path, "mnist"),
        speed.onnxruntime(tmp_path, "mnist", "cuda"),
        speed.onnxruntime(tmp_path, "mnist", "tensorrt"),
        speed.engine(tmp_path, "mnist", "tensorrt"),
    ):
        assert measured["cosine"] > 0.999
        assert measured["batch_2_images_per_s"] == pytest.approx(2000 / measured["batch_2_ms"])
        assert measured["tflops"] > 0
    assert speed.matmul_peak(tmp_path)["peak_tflops"] > 0


@pytest.mark.usefixtures("on_the_cpu")
def test_a_candidate_that_computes_something_else_has_no_speed(tmp_path):
    """The artifact in the repository is another model than `mnist`."""
    from gpu_checks import speed
    from gpu_checks.outcome import FailedError

    with pytest.raises(FailedError, match="computes something else: cosine"):
        speed._time(torch, "mnist", lambda x: torch.randn(len(x), 10))


@pytest.mark.usefixtures("on_the_cpu")
def test_io_binding_is_looked_at_from_both_ends(tmp_path, monkeypatch):
    """No copies on the CPU either; a result that lies elsewhere is found."""
    from gpu_checks import cuda
    from gpu_checks.outcome import FailedError

    assert cuda.io_binding(tmp_path)["copies"] == 0
    monkeypatch.setattr(torch, "randn", lambda *shape, device, randn=torch.randn: randn(*shape))
    monkeypatch.setattr(cuda, "DEVICE", "cuda")
    with pytest.raises(FailedError, match="the output lies on cpu"):
        cuda.io_binding(tmp_path)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_replayed_graph_is_compared_with_plain_runs(tmp_path):
    """Here both are the CPU's."""
    from gpu_checks import cuda

    measured = cuda.cuda_graph(tmp_path, "edge")
    assert measured["relative_max_abs"] == 0
    assert measured["graph_ms"] > 0


@pytest.mark.usefixtures("on_the_cpu")
def test_the_engine_cache_is_looked_at_with_other_weights(tmp_path, monkeypatch):
    """An engine that is not there is found; and so is one that was taken for another model."""
    from gpu_checks import tensorrt
    from gpu_checks.outcome import FailedError

    with pytest.raises(FailedError, match="no engine was cached"):
        tensorrt.engine_cache(tmp_path)
    load = runtime.load

    def caching(path, *, options):
        (tmp_path / "engines").mkdir(exist_ok=True)
        (tmp_path / "engines" / "e.engine").touch()
        return load(path)

    monkeypatch.setattr(runtime, "load", caching)
    assert set(tensorrt.engine_cache(tmp_path)) == {"first_s", "cached_s"}
    monkeypatch.setattr(runtime, "load", lambda path, *, options: caching(tensorrt.EDGE, options=0))
    with pytest.raises(FailedError, match="the engine of other weights was taken"):
        tensorrt.engine_cache(tmp_path)


def test_the_gate_of_a_check_is_the_gate_of_the_command(tmp_path):
    """Numbers of a real run; another provider than was asked for is a failure."""
    from gpu_checks import artifacts
    from gpu_checks.outcome import FailedError

    measured = artifacts.validated(artifacts.EDGE, "cpu")
    assert measured["max_abs"] <= measured["tolerance"]
    answer = artifacts.command("validate", artifacts.EDGE, "--provider", "cpu")
    with pytest.raises(FailedError, match="ran on 'cpu', and 'cuda' was asked for"):
        artifacts.gate_numbers(answer, "cuda")
    with pytest.raises(FailedError, match=r"provider 'cuda': the installed onnxruntime .* without"):
        artifacts.validated(artifacts.EDGE, "cuda")
    answer["hop"]["passed"] = None
    with pytest.raises(FailedError, match="the gate did not pass"):
        artifacts.gate_numbers(answer, "cpu")
