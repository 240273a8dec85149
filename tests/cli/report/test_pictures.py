"""Checks before a picture is drawn, and failures while it is."""

from __future__ import annotations

import sys

import pytest

from vit_export.cli.report.pictures import check_picture, draw_picture
from vit_export.cli.report.plots import trace_plot
from vit_export.errors import OutputError, UsageError
from vit_export.gate.trace import BlockError


def test_a_picture_of_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.png, \.svg or \.pdf"):
        check_picture(tmp_path / "out.jpeg")


def test_a_picture_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="no folder"):
        check_picture(tmp_path / "none" / "out.png")


def test_missing_matplotlib_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError, match=r"pip install 'vit-export\[bench\]'"):
        check_picture(tmp_path / "out.png")
    assert "vit-export[bench]" in draw_picture(tmp_path / "out.png", lambda figure: None)


def test_a_picture_that_fails_is_reported_without_an_error(tmp_path):
    blocks = [BlockError(name="blocks.0", max_abs=None, tolerance=None)]
    path = tmp_path / "out.png"
    reason = draw_picture(path, trace_plot, blocks, "title")
    assert reason == "no picture: no block was measured"
    assert not path.exists()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_picture_has_the_same_bytes(tmp_path, suffix):
    blocks = [
        BlockError(name="blocks.0", max_abs=1e-6, tolerance=1e-5),
        BlockError(name="blocks.1", max_abs=float("inf"), tolerance=1e-5),
    ]
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in files:
        assert draw_picture(path, trace_plot, blocks, "$title") == ""
    assert files[0].read_bytes() == files[1].read_bytes()
