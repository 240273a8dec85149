"""Packages, wheels of ONNX Runtime, and the NVIDIA libraries that they need."""

from __future__ import annotations

import importlib.metadata

import pytest

from vit_export.host.doctor import checks
from vit_export.host.doctor.types import Fact, Facts, Fault, find

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


@pytest.fixture
def declared(monkeypatch):
    """What the package's own metadata declares."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: DECLARED)
    checks.requirements.cache_clear()
    yield
    checks.requirements.cache_clear()


def only_installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make these the only installed packages; names are spelt with underscores."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(checks, "version_of", lambda name: known.get(name, ""))


@pytest.mark.usefixtures("declared")
def test_the_packages_of_an_extra_are_those_that_the_metadata_declares():
    """Without the packages of other extras, and of other versions of Python."""
    assert [r.name for r in checks.requirements()] == ["numpy"]
    assert [r.name for r in checks.requirements("cpu")] == ["onnxruntime"]
    assert [r.name for r in checks.requirements("gpu")] == ["onnxruntime-gpu"]
    assert checks.requirements("no such extra") == ()


def test_a_package_that_is_only_importable_has_no_packages_to_check(monkeypatch):
    """As in a checkout on PYTHONPATH."""

    def metadata(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", metadata)
    assert checks.check_packages(()) == ((), ())


@pytest.mark.parametrize("wheel", ["tensorrt", "tensorrt_cu12", "tensorrt_cu13_bindings"])
@pytest.mark.usefixtures("declared")
def test_any_wheel_of_tensorrt_counts(monkeypatch, wheel):
    """They contain one module; the package that the extra names only depends on another."""
    only_installed(monkeypatch, **{wheel: "10.13.3.9"})
    facts, faults = checks.check_packages(())
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
def test_versions_are_compared_as_pip_compares_them(monkeypatch, package, version, usable):
    only_installed(monkeypatch, **{package: version})
    _, faults = checks.check_packages(())
    assert (faults == ()) == usable


@pytest.mark.usefixtures("declared")
def test_a_wheel_that_is_too_old_is_upgraded_by_its_own_name(monkeypatch):
    """Another wheel would be laid over it."""
    only_installed(monkeypatch, tensorrt_cu12="10.2.0")
    facts, faults = checks.check_packages(())
    assert not find(facts, "package", "tensorrt").usable
    assert faults == (
        Fault(
            "tensorrt-cu12 10.2.0 is installed, and vit-export needs <12,>=10.3",
            "pip install --upgrade 'tensorrt-cu12<12,>=10.3'",
        ),
    )


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_an_unused_gpu_is_a_fault_that_names_the_missing_library() -> None:
    """ONNX Runtime only logs it; an old driver, and a fault that is known, change the answer."""
    facts, (fault,) = checks.check_onnxruntime(with_gpu("13.1"))
    assert "CUDAExecutionProvider does not run: libcublasLt.so.13: cannot open" in fault.what
    assert fault.remedy == "pip install --upgrade 'vit-export[gpu]'"
    assert [fact.usable for fact in facts] == [False, True]
    assert facts[0].value.startswith("compiled in, not active: libcublasLt.so.13")


ERROR = "libcublasLt.so.13: cannot open"


@pytest.mark.parametrize("provider", [checks.CUDA, checks.TENSORRT])
def test_a_gpu_wheel_without_a_gpu_is_no_fault(provider) -> None:
    assert checks._provider_fault(provider, ERROR, "13.0", ()) is None


def test_a_driver_too_old_for_the_wheel_is_named_whatever_else_is_missing() -> None:
    """No package fixes that."""
    missing = Fact("library", checks.CUDA_LIBRARIES, "CUDA 13, missing: x", usable=False)
    for facts in (with_gpu("12.4"), (*with_gpu("12.4"), missing)):
        fault = checks._provider_fault(checks.CUDA, ERROR, "13.0", facts)
        assert "built for CUDA 13.0, the driver is for 12.4" in fault.what
        assert fault.remedy == "update the NVIDIA driver to one for CUDA 13.0 or newer"


def test_a_missing_library_is_reported_once():
    missing = Fact("library", checks.CUDA_LIBRARIES, "CUDA 13, missing: x", usable=False)
    facts = (*with_gpu("13.0"), missing)
    assert checks._provider_fault(checks.CUDA, ERROR, "13.0", facts) is None


@pytest.fixture
def linked(monkeypatch) -> None:
    """The libraries that onnxruntime-gpu 1.31 is linked with."""
    libraries = {checks.CUDA: CUDA_LIBRARIES, checks.TENSORRT: TENSORRT_LIBRARIES}
    monkeypatch.setattr(checks, "provider_libraries", lambda provider: libraries[provider])


def missing(monkeypatch, *names: str) -> None:
    """Let the loader find all libraries but these."""
    monkeypatch.setattr(checks, "run_probe", lambda probe, *asked: {"missing": list(names)})


@pytest.mark.usefixtures("linked")
def test_a_missing_cublas_is_a_fault_with_the_extras_that_install_it(monkeypatch):
    missing(monkeypatch, "libcublasLt.so.13", "libcublas.so.13", "libcuda.so.1")
    facts, faults = checks.check_libraries(with_gpu("13.0"))
    assert facts == (
        Fact("library", "CUDA of onnxruntime-gpu",
             "CUDA 13, missing: libcublasLt.so.13, libcublas.so.13", usable=False),
        Fact("library", "cuDNN of onnxruntime-gpu", "9, found", usable=True),
    )  # fmt: skip
    assert faults == (
        Fault(
            "onnxruntime-gpu is linked with libraries that are not found: libcublasLt.so.13, "
            "libcublas.so.13 (its extra [cuda] alone does not install cuBLAS)",
            "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'",
        ),
    )
    assert checks.check_libraries(()) == (facts, ())


@pytest.mark.usefixtures("linked")
def test_a_missing_cudnn_is_named_too(monkeypatch):
    """The provider loads it late."""
    missing(monkeypatch, "libcudnn.so.9")
    facts, (fault,) = checks.check_libraries(with_gpu("13.0"))
    assert facts[1].value == "9, missing"
    assert not facts[1].usable
    assert fault.what.endswith("not found: libcudnn.so.9")


@pytest.mark.usefixtures("linked")
def test_libraries_that_are_all_found_are_no_fault(monkeypatch):
    missing(monkeypatch)
    facts, faults = checks.check_libraries(with_gpu("13.0"))
    assert faults == ()
    assert [fact.value for fact in facts] == ["CUDA 13, found", "9, found"]


def test_a_wheel_without_cuda_needs_no_libraries():
    """The wheel that these tests run with."""
    assert checks.check_libraries(with_gpu("13.0")) == ((), ())


@pytest.mark.usefixtures("linked")
def test_tensorrt_11_beside_a_provider_for_10_is_reported_and_no_fault(monkeypatch):
    """Engines run without ONNX Runtime."""
    conflict = "linked with TensorRT 10 and TensorRT 11.4 is installed"
    monkeypatch.setattr(checks, "tensorrt_conflict", lambda: conflict)
    monkeypatch.setattr(checks, "tensorrt_install", lambda: "pip install this")
    monkeypatch.setattr(checks, "version_of", lambda *names: "11.4" * ("tensorrt" in names))
    missing(monkeypatch, "libnvinfer.so.10")
    assert checks.check_tensorrt(()) == (
        (
            Fact("library", "TensorRT", "11.4", usable=True),
            Fact("library", "TensorRT of onnxruntime-gpu", f"{conflict}: pip install this", False),
        ),
        (),
    )


@pytest.mark.usefixtures("linked")
def test_a_tensorrt_that_was_installed_without_a_wheel_is_found_by_the_loader(monkeypatch):
    """From a .deb, or in a container."""
    monkeypatch.setattr(checks, "tensorrt_conflict", lambda: "no TensorRT wheel is installed")
    missing(monkeypatch)
    *_, fact = checks.check_tensorrt(())[0]
    assert fact == Fact("library", "TensorRT of onnxruntime-gpu", "10, found", usable=True)
    monkeypatch.setattr(checks, "run_probe", lambda probe, *names: {"error": "it crashed"})
    *_, fact = checks.check_tensorrt(())[0]
    assert not fact.usable


@pytest.mark.parametrize(
    ("answer", "value", "faults"),
    [
        ({"devices": 1}, "plugin 0.5.0, active", 0),
        ({"devices": 0}, "plugin 0.5.0, not active: it finds no GPU that it supports", 0),
        ({"error": "libcuda.so.1: no such file"}, "plugin 0.5.0, not active: libcuda.so.1: no", 1),
    ],
)
def test_the_rtx_plugin_is_active_when_it_offers_a_gpu(monkeypatch, answer, value, faults):
    """A GPU that it does not support is no fault of the machine."""
    monkeypatch.setattr(checks, "version_of", lambda *names: "0.5.0")
    monkeypatch.setattr(checks, "run_probe", lambda probe: answer)
    (fact,), found = checks._check_rtx_plugin(with_gpu("13.0"))
    assert fact.value.startswith(value)
    assert fact.usable == ("devices" in answer and answer["devices"] > 0)
    assert len(found) == faults
    assert checks._check_rtx_plugin(())[1] == ()
