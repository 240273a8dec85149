"""Checks of the installed wheel, before a session is created."""

from __future__ import annotations

import onnxruntime
import pytest

from vit_export.errors import ProviderError
from vit_export.runtime.onnxruntime import providers
from vit_export.runtime.onnxruntime.providers import (
    check_wheel_usable,
    first_line,
    worth_trying,
)


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-directml"])
def test_two_wheels_that_overwrite_each_other_are_refused(monkeypatch, other):
    """The hint removes both and installs one."""
    monkeypatch.setattr(providers, "installed_wheels", lambda: ("onnxruntime", other))
    with pytest.raises(ProviderError) as caught:
        check_wheel_usable("cuda")
    assert f"onnxruntime and {other} are both installed and overwrite" in str(caught.value)
    assert f"hint: keep one: pip uninstall -y onnxruntime {other} && pip" in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("cuda", r"pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu\[cuda,cudnn\]'"),
        ("tensorrt", r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"),
        ("openvino", "pip install 'onnxruntime-openvino'"),
        ("directml", "pip install 'onnxruntime-directml'"),
        ("migraphx", "pip install 'onnxruntime-migraphx'"),
        ("coreml", "the wheels of onnxruntime for macOS contain it"),
        ("xnnpack", "build onnxruntime with --use_xnnpack"),
    ],
)
def test_a_provider_that_the_wheel_lacks_is_refused_with_what_installs_it(provider, install):
    """By name, before the file is opened in a session."""
    with pytest.raises(ProviderError, match=f"built without .*\nhint: .*{install}$"):
        check_wheel_usable(provider)


@pytest.mark.parametrize(
    ("provider", "wheel"),
    [("qnn", "onnxruntime-qnn"), ("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx")],
)
def test_a_missing_plugin_is_named_with_its_wheel(provider, wheel):
    """It is added to the plain onnxruntime, which stays."""
    with pytest.raises(
        ProviderError, match=rf"plugin .* is not installed\nhint: pip install {wheel}$"
    ):
        check_wheel_usable(provider)


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


def test_the_metadata_of_all_packages_is_not_read_for_the_cpu(monkeypatch):
    """It takes 0.2 s; only a GPU wheel, or an error, is worth it."""
    monkeypatch.setattr(providers, "installed_wheels", lambda: pytest.fail("was read"))
    assert not worth_trying("cuda")
    monkeypatch.setattr(providers, "version_of", lambda name: "1.31.1")
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
