"""Engine files: whether they can run here, and what they may run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorrt_rtx
from click.testing import CliRunner
from fake_cuda import FakeCuda

from vit_export.artifact.engine_sidecar import (
    Gpu,
    Sidecar,
    file_sha256,
    read_plan_file,
    sidecar_path,
)
from vit_export.cli.main import main
from vit_export.errors import ArtifactError, ProviderError
from vit_export.runtime import load_engine
from vit_export.runtime.tensorrt import plan
from vit_export.runtime.tensorrt import runner as trt
from vit_export.runtime.tensorrt.backend import Backend
from vit_export.runtime.tensorrt.plan import (
    IncompatibleEngineError,
    check_compatible,
    incompatibility,
)

MakeSidecar = Callable[..., Sidecar]
L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
RTX_4090 = Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9")
A100 = Gpu(name="NVIDIA A100", compute_capability="8.0")
T4 = Gpu(name="Tesla T4", compute_capability="7.5")
B200 = Gpu(name="B200", compute_capability="10.0")
VERSION = "11.4.0.106"
RTX = {"backend": "tensorrt-rtx", "gpu": None, "compute_capabilities": ("8.0", "8.9"),
       "version": "1.7.1.116"}  # fmt: skip
SAME = {"options": {"hardware_compatibility": "same-compute-capability"}}
AMPERE = {"options": {"hardware_compatibility": "ampere-plus"}}
PORTABLE = {"options": {"version_compatible": True}, "version": "11.2.1.2"}


@pytest.mark.parametrize(
    ("fields", "version", "gpu", "reason"),
    [
        ({}, VERSION, L4, ""),
        ({}, "10.16.1.11", L4, "built with tensorrt 11.4.0.106, but tensorrt 10.16.1.11 is"),
        ({}, VERSION, A100, "for compute capability 8.9, but the GPU here is NVIDIA A100"),
        ({}, VERSION, RTX_4090, "was built on NVIDIA L4"),  # TensorRT picks kernels by model
        (SAME, VERSION, RTX_4090, ""),
        (SAME, VERSION, A100, "for compute capability 8.9"),
        (RTX, "1.7.1.116", RTX_4090, ""),
        (RTX, "1.7.1.116", A100, ""),
        (RTX, "1.7.1.116", T4, "for compute capability 8.0, 8.9"),
        (RTX, "1.6.0", A100, "1.6.0"),
        (AMPERE, VERSION, B200, ""),
        (AMPERE, VERSION, T4, "8.0 and newer"),
        (PORTABLE, VERSION, L4, ""),  # a later version of its major
        (PORTABLE, "11.1.0.106", L4, "but tensorrt 11.1.0.106 is installed"),
        (PORTABLE, "12.0.0.1", L4, "but tensorrt 12.0.0.1 is installed"),
        ({**PORTABLE, "version": "damaged"}, VERSION, L4, "built with tensorrt damaged"),
    ],
)
def test_an_engine_runs_on_the_version_and_gpus_it_was_built_for(
    make_sidecar: MakeSidecar, fields: dict, version: str, gpu: Gpu, reason: str
) -> None:
    found = incompatibility(make_sidecar(**fields), version, gpu)
    assert reason in found
    assert bool(found) == bool(reason)


def test_an_incompatible_engine_is_refused_with_the_command_that_rebuilds_it(
    make_sidecar: MakeSidecar,
) -> None:
    path = Path("x.engine")
    assert check_compatible(path, make_sidecar(), VERSION, L4) == L4
    with pytest.raises(IncompatibleEngineError) as error:
        check_compatible(path, make_sidecar(), "10.16.1.11", L4)
    assert str(error.value) == (
        "x.engine: was built with tensorrt 11.4.0.106, but tensorrt 10.16.1.11 is installed\n"
        "hint: rebuild it here: vit-export engine 'my model.onnx' --backend tensorrt "
        "--precision fp16 -o x.engine"
    )


def test_without_a_gpu_the_hint_names_what_runs_the_model(make_sidecar: MakeSidecar) -> None:
    with pytest.raises(ProviderError, match="there is no NVIDIA GPU here") as error:
        check_compatible(Path("x.engine"), make_sidecar(), VERSION, None)
    assert "--provider cpu" in error.value.hint


def test_a_missing_cut_or_exchanged_engine_file_is_refused(
    make_sidecar: MakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.engine"
    with pytest.raises(ArtifactError, match="but no such engine"):
        read_plan_file(path, make_sidecar())
    path.write_bytes(b"ab")
    with pytest.raises(ArtifactError, match=r"has 2 bytes, and its sidecar .* engine of 3"):
        read_plan_file(path, make_sidecar())
    path.write_bytes(b"abc")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        read_plan_file(path, make_sidecar())
    assert read_plan_file(path, make_sidecar(plan_sha256=file_sha256(path))) == b"abc"

    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(ArtifactError, match=r"x\.engine: cannot be read \(Permission denied\)"):
        read_plan_file(path, make_sidecar())


@pytest.fixture
def portable(make_sidecar: MakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version compatible engine, and a TensorRT on an L4 that can load no engine."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    backend = Backend(
        name="tensorrt", trt=SimpleNamespace(Runtime=lambda logger: runtime),
        version="11.4.0.106", logger=SimpleNamespace(collectors=[]),
    )  # fmt: skip
    monkeypatch.setattr(trt, "load_backend", lambda name: backend)
    monkeypatch.setattr(trt, "current_gpu", lambda ordinal: L4)
    FakeCuda().replace_cuda_core(monkeypatch)
    path = tmp_path / "x.engine"
    path.write_bytes(b"abc")
    options = {"version_compatible": True}
    make_sidecar(plan_sha256=file_sha256(path), options=options).write(sidecar_path(path))
    return path


@pytest.mark.parametrize("extra", [{}, {"trusted": True}])
def test_code_for_the_cpu_runs_only_with_its_own_argument(
    portable: Path, extra: dict[str, bool]
) -> None:
    """`trusted` skips the golden check and allows no code."""
    with pytest.raises(ProviderError, match=r"allow_host_code=True.*--trust-host-code"):
        load_engine(portable, **extra)
    with pytest.raises(ArtifactError, match=r"cannot load it: TensorRT gave no reason"):
        load_engine(portable, allow_host_code=True, **extra)


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_commands_that_load_an_engine_accept_the_option_that_the_error_names(
    portable: Path, photographs: list[Path], command: str
) -> None:
    words = [command, str(portable), *([str(photographs[0])] if command == "predict" else [])]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 1
    assert "--trust-host-code" in refused.stderr
    tried = CliRunner().invoke(main, [*words, "--trust-host-code"])
    assert tried.exit_code == 1
    assert "cannot load it" in tried.stderr


@pytest.mark.parametrize(
    ("batch", "largest", "dtype", "same"),
    [(-1, 32, "FLOAT", True), (8, 32, "FLOAT", False), (-1, 16, "FLOAT", False),
     (-1, 32, "HALF", False)],
)  # fmt: skip
def test_tensors_and_profiles_of_an_engine_are_those_of_its_sidecar(
    make_sidecar: MakeSidecar, batch: int, largest: int, dtype: str, same: bool
) -> None:
    shapes = {"pixel_values": (batch, 3, 32, 32), "logits": (-1, 10)}
    modes = tensorrt_rtx.TensorIOMode
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=("logits", "pixel_values").__getitem__,
        get_tensor_mode={"pixel_values": modes.INPUT, "logits": modes.OUTPUT}.__getitem__,
        get_tensor_dtype=lambda name: SimpleNamespace(name=dtype),
        get_tensor_shape=shapes.__getitem__,
        get_tensor_profile_shape=lambda name, index: [[n, 3, 32, 32] for n in (1, 8, largest)],
    )
    backend = Backend(name="tensorrt", trt=None, version=VERSION, logger=None)
    loaded = plan.Plan(backend=backend, runtime=None, engine=engine, sidecar=make_sidecar(),
                       memory=None)  # fmt: skip
    if same:
        loaded._check_signature(Path("x.engine"))
    else:
        with pytest.raises(ArtifactError, match="the files belong to two engines"):
            loaded._check_signature(Path("x.engine"))
