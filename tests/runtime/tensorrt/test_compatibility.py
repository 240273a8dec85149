"""Where an engine runs, and the one sentence where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vit_export.artifact.engine_sidecar import Gpu, Sidecar, file_sha256
from vit_export.errors import ArtifactError, ProviderError
from vit_export.runtime.tensorrt import compatibility as fitness
from vit_export.runtime.tensorrt.compatibility import (
    MisfitError,
    check_plan_undamaged,
    check_runs_here,
    misfit,
)

MakeSidecar = Callable[..., Sidecar]
L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
RTX_4090 = Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9")
A100 = Gpu(name="NVIDIA A100", compute_capability="8.0")
T4 = Gpu(name="Tesla T4", compute_capability="7.5")
VERSION = "11.4.0.106"


def test_an_engine_fits_where_it_was_built(make_sidecar: MakeSidecar) -> None:
    """The same version, the same GPU."""
    assert misfit(make_sidecar(), VERSION, L4) == ""
    assert check_runs_here(Path("x.engine"), make_sidecar(), VERSION, L4) == L4


def test_another_version_or_gpu_is_named_with_both_sides_and_the_way_out(
    make_sidecar: MakeSidecar,
) -> None:
    """One sentence."""
    with pytest.raises(MisfitError) as version:
        check_runs_here(Path("x.engine"), make_sidecar(), "10.16.1.11", L4)
    assert str(version.value) == (
        "x.engine: was built with tensorrt 11.4.0.106, but tensorrt 10.16.1.11 is installed; "
        "rebuild it here: vit-export engine 'my model.onnx' --backend tensorrt --precision fp16 "
        "-o x.engine"
    )
    with pytest.raises(
        MisfitError, match=r"for compute capability 8.9, but the GPU here is NVIDIA A"
    ):
        check_runs_here(Path("x.engine"), make_sidecar(), VERSION, A100)


def test_another_model_of_the_same_compute_capability_does_not_fit(
    make_sidecar: MakeSidecar,
) -> None:
    """TensorRT picks kernels by the GPU's size, unless it is told to be compatible."""
    assert "was built on NVIDIA L4" in misfit(make_sidecar(), VERSION, RTX_4090)
    options = {"hardware_compatibility": "same-compute-capability"}
    assert misfit(make_sidecar(options=options), VERSION, RTX_4090) == ""
    assert misfit(make_sidecar(options=options), VERSION, A100) != ""


def test_an_rtx_engine_runs_on_every_gpu_that_it_was_compiled_for(
    make_sidecar: MakeSidecar,
) -> None:
    """It was built without any."""
    sidecar = make_sidecar(
        backend="tensorrt-rtx", gpu=None, compute_capabilities=("8.0", "8.9"), version="1.7.1.116"
    )
    assert misfit(sidecar, "1.7.1.116", RTX_4090) == ""
    assert misfit(sidecar, "1.7.1.116", A100) == ""
    assert "for compute capability 8.0, 8.9" in misfit(sidecar, "1.7.1.116", T4)
    assert "1.6.0" in misfit(sidecar, "1.6.0", A100)


def test_an_ampere_plus_engine_runs_on_newer_gpus(make_sidecar: MakeSidecar) -> None:
    """And on no older ones."""
    sidecar = make_sidecar(options={"hardware_compatibility": "ampere-plus"})
    assert misfit(sidecar, VERSION, Gpu(name="B200", compute_capability="10.0")) == ""
    assert "8.0 and newer" in misfit(sidecar, VERSION, T4)


def test_a_version_compatible_engine_runs_on_later_versions_of_its_major(
    make_sidecar: MakeSidecar,
) -> None:
    """Not on earlier ones, and not on the next major."""
    sidecar = make_sidecar(version="11.2.1.2", options={"version_compatible": True})
    assert misfit(sidecar, VERSION, L4) == ""
    assert misfit(sidecar, "11.1.0.106", L4) != ""
    assert misfit(sidecar, "12.0.0.1", L4) != ""


def test_without_a_gpu_an_engine_says_so_in_one_line(make_sidecar: MakeSidecar) -> None:
    """And what runs the model nevertheless."""
    with pytest.raises(ProviderError, match="there is no NVIDIA GPU here") as refusal:
        check_runs_here(Path("x.engine"), make_sidecar(), VERSION, None)
    assert "\n" not in str(refusal.value)
    assert "--provider cpu" in str(refusal.value)


def test_a_plan_that_is_not_the_sidecars_is_refused(
    make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    """Missing, cut off, or another one."""
    path = tmp_path / "x.engine"
    with pytest.raises(ArtifactError, match="no such engine"):
        check_plan_undamaged(path, make_sidecar())
    path.write_bytes(b"ab")
    with pytest.raises(ArtifactError, match="holds 2 bytes, its sidecar speaks of 3"):
        check_plan_undamaged(path, make_sidecar())
    path.write_bytes(b"abc")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        check_plan_undamaged(path, make_sidecar())
    check_plan_undamaged(path, make_sidecar(plan_sha256=file_sha256(path)))


def test_a_plan_that_cannot_be_read_is_our_error(
    make_sidecar: MakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its rights forbid it."""

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", path)

    path = tmp_path / "x.engine"
    path.write_bytes(b"abc")
    monkeypatch.setattr(fitness, "file_sha256", forbidden)
    with pytest.raises(ArtifactError, match=r"x\.engine: cannot be read \(Permission denied\)"):
        check_plan_undamaged(path, make_sidecar())
