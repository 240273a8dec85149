"""Candidates of a benchmark, and requests that are refused before anything runs."""

from __future__ import annotations

import importlib
import shutil

import pytest

from vit_export.benchmark.candidates import plan
from vit_export.errors import ArtifactError, UsageError


def test_each_artifact_is_a_candidate_on_each_provider_and_torch_comes_last(tiny_export):
    """Torch does not run on tensorrt."""
    found = plan([tiny_export.path], providers=["cpu", "tensorrt"], against=["torch"], threads=2)
    assert [(c.name, c.provider) for c in found] == [
        ("tiny.onnx", "cpu"), ("tiny.onnx", "tensorrt"), ("torch", "cpu"),
    ]  # fmt: skip
    assert [c.must_match for c in found] == [False, False, True]
    assert all(c.order["threads"] == 2 for c in found)
    assert found[0].file_bytes == tiny_export.path.stat().st_size


def test_every_worker_module_has_a_main_function(tiny_export):
    """Children start them by name."""
    candidates = plan([tiny_export.path], against=["torch", "torch-compile"])
    modules = {candidate.module for candidate in candidates}
    assert modules == {"vit_export.benchmark.worker", "vit_export.benchmark.torch_worker"}
    assert all(callable(importlib.import_module(name).main) for name in modules)


def test_files_with_the_same_name_are_listed_by_path(tiny_export, tmp_path):
    """So that the rows of the table differ."""
    copy = tmp_path / tiny_export.path.name
    shutil.copy(tiny_export.path, copy)
    names = [candidate.name for candidate in plan([tiny_export.path, copy])]
    assert names == [str(tiny_export.path), str(copy)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"against": ["torhc"]}, "did you mean 'torch'"),
        ({"providers": ["cpu", "cpu"]}, "given twice"),
        ({"against": ["torch", "torch"]}, "given twice"),
        ({"weights": "w.safetensors"}, "add --against torch"),
        ({"layout": "timm"}, "--weights FILE"),
        ({"layout": "timm", "against": ["torch"]}, "--weights FILE"),
        ({"providers": []}, "expected at least one"),
        ({"providers": ["cpu", "auto"]}, "would be timed twice"),
    ],
)
def test_unknown_repeated_and_useless_arguments_are_errors(tiny_export, changes, words):
    """Before anything is measured."""
    with pytest.raises(UsageError, match=words):
        plan([tiny_export.path], **changes)
    with pytest.raises(UsageError, match="given twice"):
        plan([tiny_export.path, tiny_export.path.parent / "." / tiny_export.path.name])


@pytest.mark.parametrize("name", ["none.onnx", "none.engine"])
def test_a_missing_file_is_named(tmp_path, name):
    """An .onnx file and an engine alike."""
    with pytest.raises(ArtifactError, match=rf"{name}.*no such file"):
        plan([tmp_path / name])


def test_a_device_is_given_to_every_candidate_but_the_cpu(tiny_export):
    """Which numbers none; torch is a candidate too."""
    found = plan([tiny_export.path], providers=["cpu", "cuda"], against=["torch"], device=1)
    assert [(c.name, c.provider, c.order["device"]) for c in found] == [
        ("tiny.onnx", "cpu", None), ("tiny.onnx", "cuda", 1),
        ("torch", "cpu", None), ("torch", "cuda", 1),
    ]  # fmt: skip


def test_threads_are_for_onnx_files_and_host_code_is_for_engines(tiny_export, tmp_path):
    """An option without effect on any candidate is an error."""
    engine = tmp_path / "x.plan"
    engine.touch()
    found = plan([tiny_export.path, engine], threads=2, allow_host_code=True)
    asked = [(c.order["threads"], c.order["allow_host_code"]) for c in found]
    assert asked == [
        (2, False),
        (None, True),
    ]
    with pytest.raises(UsageError, match="--threads 2: engines compute on the GPU"):
        plan([engine], threads=2)
    with pytest.raises(UsageError, match="--device 1: the CPU is no GPU"):
        plan([tiny_export.path], providers=["cpu"], device=1)
    with pytest.raises(UsageError, match=r"--trust-host-code is for engines"):
        plan([tiny_export.path], allow_host_code=True)
