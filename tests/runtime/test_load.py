"""`load` and `load_engine` choose the backend by the file's suffix and check their options."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from vit_export import errors, runtime
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.runtime import CudaOptions, engine_check, load, load_engine


@pytest.mark.parametrize("options", [{"rebuild": True}, {"trusted": True}, {}])
def test_load_engine_refuses_other_files(tiny_export, options):
    """The hint names `load`."""
    with pytest.raises(
        UsageError, match=r"tiny\.onnx: not the name of an engine \(.*\)\nhint: .*load\(\)"
    ):
        load_engine(tiny_export.path, **options)


@pytest.mark.parametrize("path", [None, 3, b"m.onnx", ""])
def test_what_is_no_path_is_refused_by_name(path):
    with pytest.raises(ArtifactError, match=f"^{re.escape(repr(path))}: not the path of a file"):
        load(path)


@pytest.mark.parametrize("options", [{"threads": 4}, {"options": CudaOptions()}])
def test_load_refuses_options_of_onnx_files_for_an_engine(tmp_path, options):
    """An engine computes on its GPU, as it was built."""
    with pytest.raises(UsageError, match=rf"{next(iter(options))}=.* is for \.onnx files"):
        load(tmp_path / "x.plan", **options)


@pytest.mark.parametrize(
    ("options", "trusted", "allow_host_code"),
    [
        ({}, False, False),
        ({"trusted": True}, True, False),
        ({"allow_host_code": True}, False, True),
    ],
)
def test_only_trusted_skips_the_golden_check(
    tmp_path, monkeypatch, options, trusted, allow_host_code
):
    """An engine whose code may run on the CPU is measured all the same."""
    received: dict[str, Any] = {}

    def open_engine(path, **options):
        received.update(options)
        raise UsageError("enough")

    monkeypatch.setattr(engine_check, "open_engine", open_engine)
    with pytest.raises(UsageError, match="enough"):
        load_engine(tmp_path / "x.engine", **options)
    assert (received["trusted"], received["allow_host_code"]) == (trusted, allow_host_code)


@pytest.mark.parametrize("suffix", [".engine", ".plan", ".trt"])
def test_load_opens_an_engine_with_the_defaults_of_load_engine(tmp_path, monkeypatch, suffix):
    """Measured at first load, not rebuilt, without code of its own."""
    received: dict[str, Any] = {}

    def open_engine(path, **options):
        received.update(options)
        raise ProviderError("enough")

    monkeypatch.setattr(engine_check, "open_engine", open_engine)
    with pytest.raises(ProviderError, match="enough"):
        load(str(tmp_path / f"x{suffix}"), provider="tensorrt")
    assert received == {
        "provider": "tensorrt", "device": None, "rebuild": False, "trusted": False,
        "allow_host_code": False, "runtime_cache": None,
    }  # fmt: skip


def test_an_engine_runs_on_the_provider_that_it_was_built_for(engine_path):
    for provider in (["tensorrt", "cuda"], "tensorrt-rtx", []):
        with pytest.raises(ProviderError, match="only tensorrt runs this engine"):
            load(engine_path, provider=provider)
    load_engine(engine_path, provider=["tensorrt"], trusted=True).close()


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("x.onnx", "onnxruntime", "cpu"), ("x.engine", "cuda", "tensorrt")],
)
def test_a_missing_backend_is_named_with_its_install_command(tmp_path, name, module, extra):
    """Before the file is read; in a process of its own, where the module is blocked."""
    (tmp_path / name).touch()
    script = f"""
import sys
sys.modules[{module!r}] = None
from vit_export.errors import ProviderError
from vit_export.runtime import load
try:
    load({str(tmp_path / name)!r})
except ProviderError as error:
    print(error)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    message, hint = child.stdout.splitlines()
    assert message.startswith(f"cannot run {name}: {module}")
    assert message.endswith("is not installed")
    assert hint.startswith("hint: pip install")
    assert f"[{extra}]" in hint


def test_the_errors_of_loading_and_running_are_importable_from_the_runtime():
    """A program on a device needs one module."""
    for name in ("VitExportError", "ArtifactError", "GateError", "ImageError", "ProviderError"):
        assert getattr(runtime, name) is getattr(errors, name)
    assert set(runtime.__all__) <= set(dir(runtime)) | {
        "CudaOptions", "Model", "Prediction", "TensorrtOptions", "TensorrtRtxOptions"
    }  # fmt: skip


def test_a_first_prediction_on_the_cpu_imports_what_it_needs(tiny_export, photographs):
    """Not what writes files, starts processes, or reads other formats: 0.05 s of 0.7."""
    program = f"""
import sys
from vit_export.runtime import load
load({str(tiny_export.path)!r}).classify({str(photographs[0])!r})
print("vit_export.images.read_ahead" in sys.modules)
print(*sorted(sys.modules.keys() & {{
    "importlib.metadata", "PIL.PngImagePlugin", "vit_export.artifact.publish",
    "vit_export.artifact.golden", "vit_export.host.child_process", "vit_export.host.probes",
}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stdout + done.stderr
