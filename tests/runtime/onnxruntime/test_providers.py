"""Checks of the installed wheel, before a session is created."""

from __future__ import annotations

import onnxruntime
import pytest

from vit_export.errors import ProviderError
from vit_export.runtime.onnxruntime import providers
from vit_export.runtime.onnxruntime.options import NVIDIA
from vit_export.runtime.onnxruntime.providers import (
    check_wheel_usable,
    first_line,
    join_hints,
    worth_trying,
)


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-directml"])
def test_two_wheels_that_overwrite_each_other_are_refused(monkeypatch, other):
    """The hint removes both and installs one."""
    monkeypatch.setattr(providers, "installed_wheels", lambda: ("onnxruntime", other))
    with pytest.raises(ProviderError) as caught:
        check_wheel_usable("cuda")
    assert f"onnxruntime and {other} are both installed and overwrite" in str(caught.value)
    hint = f"hint: on a machine with an NVIDIA GPU: pip uninstall -y onnxruntime {other} && pip"
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("cuda", NVIDIA + r"pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu\[.*\]'"),
        ("tensorrt", NVIDIA + r".* && pip install 'onnxruntime-gpu\[cuda,cudnn\]'"),
        ("openvino", "pip uninstall .* && pip install 'onnxruntime-openvino'"),
        ("directml", "on Windows: .* && pip install 'onnxruntime-directml'"),
        ("migraphx", "on a machine with an AMD GPU: .* && pip install 'onnxruntime-migraphx'"),
        ("coreml", "on a Mac: the wheels of onnxruntime contain it"),
        ("xnnpack", "build onnxruntime with --use_xnnpack"),
    ],
)
def test_a_provider_that_the_wheel_lacks_is_refused_with_what_installs_it(provider, install):
    """By name, before the file is opened in a session."""
    with pytest.raises(ProviderError, match=f"built without .*\nhint: {install}$"):
        check_wheel_usable(provider)


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("qnn", "on a machine with a Qualcomm NPU: pip install onnxruntime-qnn"),
        ("tensorrt-rtx", f"{NVIDIA}pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_a_missing_plugin_is_named_with_its_wheel(provider, install):
    """It is added to the plain onnxruntime, which stays."""
    with pytest.raises(ProviderError, match=f"plugin .* is not installed\nhint: {install}$"):
        check_wheel_usable(provider)


def test_the_installed_wheel_is_removed_once_for_several_providers():
    """Commands that uninstall each other's wheels would leave the last provider only."""
    hints = []
    for provider in ("cuda", "qnn", "tensorrt", "directml"):
        with pytest.raises(ProviderError) as caught:
            check_wheel_usable(provider)
        hints.append(caught.value.hint)
    assert join_hints(hints) == (
        "on a machine with a Qualcomm NPU: pip install onnxruntime-qnn; or "
        "replace the installed onnxruntime (pip uninstall -y onnxruntime) by one of these: "
        "on a machine with an NVIDIA GPU: pip install 'onnxruntime-gpu[cuda,cudnn]'; or "
        "on Windows: pip install 'onnxruntime-directml'"
    )


def test_a_version_that_does_not_report_nodes_is_refused(monkeypatch):
    """Unless another wheel is needed anyway, which the message then names."""
    name = "get_provider_graph_assignment_info"
    (base,) = (each for each in onnxruntime.InferenceSession.__mro__ if name in vars(each))
    monkeypatch.delattr(base, name)
    with pytest.raises(ProviderError, match="without CUDAExecutionProvider"):
        check_wheel_usable("cuda")
    monkeypatch.setattr(providers, "built_in", lambda provider: True)
    with pytest.raises(ProviderError, match=r"1\.24\.1 or newer, .*\nhint: .*'onnxruntime>=1\.24"):
        check_wheel_usable("openvino")


def test_the_metadata_of_all_packages_is_not_read_for_the_cpu(monkeypatch, tmp_path):
    """It takes 0.2 s; only a GPU wheel, or an error, is worth it."""
    monkeypatch.setattr(providers, "installed_wheels", lambda: pytest.fail("was read"))
    assert not worth_trying("cuda")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    assert not worth_trying("cuda")
    (tmp_path / "onnxruntime_gpu-1.31.1.dist-info").mkdir()  # overwritten by the wheel for CPUs
    assert worth_trying("cuda")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : no kernel\nmore", "1 : FAIL : no kernel"),
        ("/src/state.cc:729 void f(Options&, const Map&) Please install it", "Please install it"),
        ("/src/is/no/place", "/src/is/no/place"),
        ("", "RuntimeError"),
    ],
)
def test_a_backends_message_is_cut_to_its_first_line(said, shown):
    """Without the source line in C++."""
    assert first_line(RuntimeError(said)) == shown
