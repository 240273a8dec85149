"""What is asked of a file is asked of the right kind, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from vit_export.errors import UsageError
from vit_export.runtime import engine_check as enginecheck
from vit_export.runtime import load


@pytest.mark.parametrize("asked", ["rebuild", "trusted", "allow_host_code"])
def test_what_is_for_an_engine_is_refused_for_an_onnx_file(tiny_export, asked):
    """Nothing would come of it."""
    with pytest.raises(UsageError, match=rf"tiny\.onnx: {asked}.* is for an \.engine file"):
        load(tiny_export.path, **{asked: True})


def test_threads_are_refused_for_an_engine(tmp_path):
    """It computes on its GPU."""
    with pytest.raises(UsageError, match=r"threads=4 is for an \.onnx file"):
        load(tmp_path / "x.engine", threads=4)


@pytest.mark.parametrize(
    ("asked", "check", "allow_host_code"),
    [
        ({}, True, False),
        ({"trusted": True}, False, False),
        ({"allow_host_code": True}, True, True),
    ],
)
def test_an_engine_whose_code_may_run_is_measured_all_the_same(
    tmp_path, monkeypatch, asked, check, allow_host_code
):
    """Only `trusted` leaves the golden check out."""
    seen: dict[str, Any] = {}

    def open_engine(path, **options):
        seen.update(options)
        raise UsageError("enough")

    monkeypatch.setattr(enginecheck, "open_engine", open_engine)
    with pytest.raises(UsageError, match="enough"):
        load(tmp_path / "x.engine", **asked)
    assert (seen["check"], seen["allow_host_code"]) == (check, allow_host_code)
