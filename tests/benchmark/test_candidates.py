"""What was asked for becomes candidates, or an error before anything runs."""

from __future__ import annotations

import shutil

import pytest

from vit_export.benchmark.candidates import plan
from vit_export.errors import ArtifactError, UsageError


def test_artifacts_meet_every_provider_and_torch_comes_last(tiny_export):
    """Torch runs where it can: it knows no tensorrt."""
    found = plan([tiny_export.path], providers=["cpu", "tensorrt"], against=["torch"], threads=2)
    assert [(c.name, c.provider) for c in found] == [
        ("tiny.onnx", "cpu"), ("tiny.onnx", "tensorrt"), ("torch", "cpu"),
    ]  # fmt: skip
    assert [c.must_match for c in found] == [False, False, True]
    assert all(c.order["threads"] == 2 for c in found)
    assert found[0].file_bytes == tiny_export.path.stat().st_size


def test_files_of_one_name_are_told_apart(tiny_export, tmp_path):
    """By their paths."""
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
        ({"providers": ["cpu", "auto"]}, "let it stand alone"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(tiny_export, changes, words):
    """Before a second of measuring."""
    with pytest.raises(UsageError, match=words):
        plan([tiny_export.path], **changes)
    with pytest.raises(UsageError, match="given twice"):
        plan([tiny_export.path, tiny_export.path.parent / "." / tiny_export.path.name])


def test_nothing_to_run_is_refused():
    """A list of files that turned out empty."""
    with pytest.raises(UsageError, match="expected at least one file"):
        plan([])


@pytest.mark.parametrize("name", ["none.onnx", "none.engine"])
def test_a_missing_file_is_named(tmp_path, name):
    """Whatever it would have been."""
    with pytest.raises(ArtifactError, match=rf"{name}.*no such file"):
        plan([tmp_path / name])


def test_an_engine_is_given_no_threads_and_others_are_given_no_trust(tiny_export, tmp_path):
    """Each means nothing to the other; where it means something to nobody it is refused."""
    engine = tmp_path / "x.engine"
    engine.touch()
    found = plan([tiny_export.path, engine], threads=2, allow_host_code=True)
    asked = [(c.order["threads"], c.order["allow_host_code"]) for c in found]
    assert asked == [
        (2, False),
        (None, True),
    ]
    with pytest.raises(UsageError, match="--threads 2: an engine computes on its GPU"):
        plan([engine], threads=2)
    with pytest.raises(UsageError, match=r"--trust-host-code is for an \.engine file"):
        plan([tiny_export.path], allow_host_code=True)
