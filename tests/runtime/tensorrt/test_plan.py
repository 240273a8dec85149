"""A plan that brings code for the host, and what allows that to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from vit_export.artifact.engine_sidecar import Gpu, Sidecar, file_sha256, sidecar_path
from vit_export.cli.main import main
from vit_export.errors import ArtifactError, ProviderError
from vit_export.runtime import load_engine
from vit_export.runtime.tensorrt import runner as trt
from vit_export.runtime.tensorrt.backend import Backend

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")


@pytest.fixture
def portable(
    make_sidecar: Callable[..., Sidecar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A version compatible engine, and a TensorRT on an L4 that loads none."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    backend = Backend(
        name="tensorrt", trt=SimpleNamespace(Runtime=lambda logger: runtime),
        version="11.4.0.106", logger=SimpleNamespace(listeners=[]),
    )  # fmt: skip
    monkeypatch.setattr(trt, "load_backend", lambda name: backend)
    monkeypatch.setattr(trt, "current_gpu", lambda: L4)
    monkeypatch.setattr(trt, "current_ordinal", lambda: 0)
    path = tmp_path / "x.engine"
    path.write_bytes(b"abc")
    options = {"version_compatible": True}
    make_sidecar(plan_sha256=file_sha256(path), options=options).write(sidecar_path(path))
    return path


@pytest.mark.parametrize("extra", [{}, {"trusted": True}])
def test_trust_in_the_numbers_is_none_in_the_code(portable: Path, extra: dict[str, bool]) -> None:
    """Both have an argument of their own."""
    with pytest.raises(ProviderError, match=r"allow_host_code=True.*--trust-host-code"):
        load_engine(portable, **extra)
    with pytest.raises(ArtifactError, match=r"cannot load it: TensorRT gave no reason"):
        load_engine(portable, allow_host_code=True, **extra)


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_commands_that_load_an_engine_take_the_flag_that_the_error_names(
    portable: Path, photographs: list[Path], command: str
) -> None:
    """Without it they refuse."""
    words = [command, str(portable), *([str(photographs[0])] if command == "predict" else [])]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 1
    assert "--trust-host-code" in refused.stderr
    tried = CliRunner().invoke(main, [*words, "--trust-host-code"])
    assert tried.exit_code == 1
    assert "cannot load it" in tried.stderr
