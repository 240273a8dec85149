"""Packages, the GPU, wheels of ONNX Runtime, and the NVIDIA libraries that they need."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import pytest

from vit_export.host import nvidia, probes
from vit_export.host.child_process import Answer
from vit_export.host.doctor import checks
from vit_export.host.doctor.checks import (
    Fact,
    Facts,
    Fault,
    Findings,
    capability,
    find,
    run_checks,
)

CUDA_LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcudart.so.13", "libcuda.so.1")
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libcudart.so.13", "libcudnn.so.9")
DECLARED = [
    "numpy>=1.26",
    "onnxruntime>=1.20; extra == 'cpu'",
    "onnxruntime-gpu[cuda,cudnn]>=1.24.1; extra == 'gpu'",
    "tomli>=2; python_version < '3' and extra == 'cpu'",
    "tensorrt<12,>=10.3; extra == 'tensorrt'",
    "tensorrt-rtx>=1.4; extra == 'tensorrt-rtx'",
]


def with_gpu(cuda: str) -> Facts:
    """What check_gpu finds on a machine with a GPU."""
    return (Fact("gpu", "driver", f"CUDA {cuda}", usable=True),)


def found_by(
    check: Callable[[Facts], Findings], facts: Facts = ()
) -> tuple[Facts, tuple[Fault, ...]]:
    """Run one check with the facts of earlier ones."""
    return run_checks(lambda _: check(facts))


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package's own metadata declares."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: DECLARED)


def only_installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make these the only installed packages; names are spelt with underscores."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(nvidia, "version_of", lambda name: known.get(name, ""))


def answering(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    """Let every probe give this answer."""
    monkeypatch.setattr(probes, "run_probe", lambda probe, *names: answer)


@pytest.mark.usefixtures("declared")
def test_the_packages_of_an_extra_are_those_that_the_metadata_declares() -> None:
    """Without those for other versions of Python; an extra that it lacks has the built-in list."""
    names = {extra: [r.name for r in rs] for extra, rs in checks.requirements().items()}
    assert names == {"": ["numpy"], "cpu": ["onnxruntime"], "gpu": ["onnxruntime-gpu"],
                     "tensorrt": ["tensorrt"], "tensorrt-rtx": ["tensorrt-rtx"],
                     "export": checks.EXTRAS["export"].split()}  # fmt: skip


def test_the_built_in_list_of_packages_is_that_of_the_metadata() -> None:
    """ONNX Runtime is left out: its providers are tried, and several wheels contain its module."""
    declared = checks.requirements()
    for extra, names in checks.EXTRAS.items():
        assert {r.name for r in declared[extra]} - {"onnxruntime"} == {*names.split()}


@pytest.mark.parametrize("wheel", ["tensorrt", "tensorrt_cu12", "tensorrt_cu13_bindings"])
@pytest.mark.usefixtures("declared")
def test_any_wheel_of_tensorrt_counts(monkeypatch: pytest.MonkeyPatch, wheel: str) -> None:
    """They contain one module; the package that the extra names only depends on another."""
    only_installed(monkeypatch, **{wheel: "10.13.3.9"})
    facts, faults = found_by(checks.check_packages)
    assert find(facts, "package", "tensorrt") == Fact("package", "tensorrt", "10.13.3.9", True)
    assert not find(facts, "package", "tensorrt-rtx").usable
    assert faults == ()


@pytest.mark.parametrize(
    ("package", "version", "usable"),
    [
        ("tensorrt_rtx_cu13", "1.7.1.116", True),
        ("tensorrt", "10.3.0", True),  # that of JetPack 6
        ("tensorrt", "12.0.0", False),
        ("onnxruntime", "1.20.0+local", True),
        ("onnxruntime", "1.33.0.dev20261101", True),
        ("onnxruntime", "1.20rc1", False),
    ],
)
@pytest.mark.usefixtures("declared")
def test_versions_are_compared_as_pip_compares_them(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str, usable: bool
) -> None:
    only_installed(monkeypatch, **{package: version})
    assert (found_by(checks.check_packages)[1] == ()) == usable


@pytest.mark.usefixtures("declared")
def test_a_wheel_that_is_too_old_is_upgraded_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another wheel would be laid over it."""
    only_installed(monkeypatch, tensorrt_cu12="10.2.0")
    facts, faults = found_by(checks.check_packages)
    assert not find(facts, "package", "tensorrt").usable
    assert faults == (
        Fault(
            "tensorrt-cu12 10.2.0 is installed, and vit-export needs <12,>=10.3",
            "pip install --upgrade 'tensorrt-cu12<12,>=10.3'",
        ),
    )


@pytest.mark.parametrize(
    ("answer", "usable", "faults"),
    [
        ({"absent": "libcuda.so.1: no such file"}, False, 0),
        ({"error": "cuInit: system driver mismatch (803)"}, False, 1),
        ({"cuda": "13.0", "gpus": []}, False, 0),
        ({"cuda": "13.0", "gpus": ["NVIDIA H200, compute capability 9.0, 140 GiB"]}, True, 0),
    ],
)
def test_an_absent_driver_is_no_fault_and_a_broken_one_is(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, usable: bool, faults: int
) -> None:
    answering(monkeypatch, answer)
    facts, found = found_by(checks.check_gpu)
    assert (facts[0].usable, len(found)) == (usable, faults)
    assert len(facts) == 1 + len(answer.get("gpus", ()))
    assert capability(facts) == ((9, 0) if usable else (0, 0))


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_an_unused_gpu_is_a_fault_that_names_the_missing_library() -> None:
    """ONNX Runtime only logs it."""
    facts, (fault,) = found_by(checks.check_onnxruntime, with_gpu("13.1"))
    assert "CUDAExecutionProvider does not run: libcublasLt.so.13: cannot open" in fault.what
    assert fault.remedy == "pip install --upgrade 'vit-export[gpu]'"
    assert [fact.usable for fact in facts] == [False, True]
    assert facts[0].value.startswith("compiled in, not active: libcublasLt.so.13")
    assert found_by(checks.check_onnxruntime)[1] == ()  # without a GPU


@pytest.fixture
def linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries that onnxruntime-gpu 1.31 is linked with."""
    libraries = {nvidia.CUDA: CUDA_LIBRARIES, nvidia.TENSORRT: TENSORRT_LIBRARIES}
    monkeypatch.setattr(nvidia, "provider_libraries", lambda provider: libraries[provider])


@pytest.mark.usefixtures("linked")
def test_missing_libraries_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {"missing": ["libcublasLt.so.13", "libcudnn.so.9"]})
    facts, faults = found_by(checks.check_libraries)
    values = {fact.name: fact.value for fact in facts}
    assert (values["libcublas.so.13"], values["libcudnn.so.9"]) == ("found", "missing")
    assert faults == ()


@pytest.mark.parametrize(
    ("cuda", "missing", "error", "what", "remedy"),
    [
        ("13.0", (), "", "", ""),
        ("13.0", (), "why", "CUDAExecutionProvider does not run: why", "pip install --upgrade"),
        ("13.0", ("libcublas.so.13", "libcudnn.so.9"), "why", "missing: libcublas.so.13, libcudnn",
         "pip install --upgrade 'vit-export[gpu]'"),
        ("13.0", ("libcudnn.so.9",), "", "libraries are missing: libcudnn.so.9", "pip install --"),
        ("13.0", ("libnvinfer.so.10",), "", "", ""),
        ("12.4", (), "why", "is built for CUDA 13, and the NVIDIA driver is for CUDA 12.4",
         "update the NVIDIA driver to one for CUDA 13 or newer"),
        ("12.4", ("libcudnn.so.9",), "", "the NVIDIA driver is for CUDA 12.4", "update the NVID"),
    ],
)  # fmt: skip
def test_what_cuda_lacks_is_one_fault(
    monkeypatch: pytest.MonkeyPatch, cuda: str, missing: str, error: str, what: str, remedy: str
) -> None:
    """A missing cuDNN is a fault before a provider fails; no package helps an old driver."""
    libraries = (*CUDA_LIBRARIES, *TENSORRT_LIBRARIES)
    found = tuple(Fact("library", name, "", usable=name not in missing) for name in libraries)
    answers = {
        probes.probe_onnxruntime: {"providers": [nvidia.CUDA]},
        probes.probe_provider: {"error": error} if error else {},
    }
    monkeypatch.setattr(nvidia, "onnxruntime_wheels", lambda: ("onnxruntime-gpu",))
    monkeypatch.setattr(probes, "run_probe", lambda probe, *_: answers[probe])
    _, faults = found_by(checks.check_onnxruntime, (*with_gpu(cuda), *found))
    assert len(faults) == bool(what)
    for fault in faults:
        assert what in fault.what
        assert fault.remedy.startswith(remedy)
    assert found_by(checks.check_onnxruntime, found)[1] == ()  # without a GPU


def test_a_wheel_without_cuda_needs_no_libraries() -> None:
    """The wheel that these tests run with."""
    assert found_by(checks.check_libraries, with_gpu("13.0")) == ((), ())


@pytest.mark.usefixtures("linked")
def test_a_tensorrt_that_was_installed_without_a_wheel_is_found_by_the_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a .deb, or in a container."""
    monkeypatch.setattr(nvidia, "tensorrt_conflict", lambda: ("no TensorRT wheel is installed", ""))
    answering(monkeypatch, {"missing": []})
    facts, _ = found_by(checks.check_libraries)
    assert find(facts, "library", "libnvinfer.so.10").usable


@pytest.mark.parametrize(
    ("answer", "value", "faults"),
    [
        ({"devices": 1}, "plugin 0.5.0, active", 0),
        ({"devices": 0}, "plugin 0.5.0, not active: it finds no GPU that it supports", 0),
        ({"error": "libcuda.so.1: no such file"}, "plugin 0.5.0, not active: libcuda.so.1: no", 1),
    ],
)
def test_the_rtx_plugin_is_active_when_it_offers_a_gpu(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, value: str, faults: int
) -> None:
    """A GPU that it does not support is no fault of the machine."""
    monkeypatch.setattr(nvidia, "onnxruntime_wheels", lambda: ("onnxruntime",))
    monkeypatch.setattr(nvidia, "version_of", lambda *names: "0.5.0")
    monkeypatch.setattr(
        probes,
        "run_probe",
        lambda probe, *_: {"providers": []} if probe is probes.probe_onnxruntime else answer,
    )
    (fact,), found = found_by(checks.check_onnxruntime, with_gpu("13.0"))
    assert fact.value.startswith(value)
    assert fact.usable == bool(answer.get("devices"))
    assert len(found) == faults
    assert found_by(checks.check_onnxruntime)[1] == ()
