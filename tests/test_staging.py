"""What is finished is moved in one step; what fails leaves everything as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_export.errors import GateError, OutputError
from vit_export.staging import publish, staging


def test_the_folder_lies_beside_the_output_and_is_gone_afterwards(tmp_path):
    """On the same disk, so that moving is renaming."""
    with staging(tmp_path / "m.onnx") as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(".m.onnx.")
        (folder / "half").write_text("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [GateError("no"), KeyboardInterrupt(), ValueError("bug")])
def test_the_folder_is_gone_after_a_failure_which_stays_what_it_was(tmp_path, error):
    """An interrupt included."""

    def work() -> None:
        with staging(tmp_path / "m.onnx") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        work()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_the_output(tmp_path):
    """The one file system error that users meet while writing."""
    with (
        pytest.raises(OutputError, match=r"m\.onnx: No space left on device; nothing was left"),
        staging(tmp_path / "m.onnx"),
    ):
        raise OSError(28, os.strerror(28))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    """A folder, a folder that is not there, a file as folder."""
    (tmp_path / "file").touch()
    for output, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "m.onnx", "mkdir -p"),
        (tmp_path / "file" / "m.onnx", "there is no folder"),
    ):
        with pytest.raises(OutputError, match=reason), staging(output):
            pytest.fail("the work began")


def test_a_bare_name_is_written_into_the_current_folder(tmp_path, monkeypatch):
    """As the command line gives it."""
    monkeypatch.chdir(tmp_path)
    with staging(Path("m.onnx")) as folder:
        (folder / "m.onnx").write_text("new")
        publish([folder / "m.onnx"], Path())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_publishing_replaces_all_files(tmp_path):
    """And leaves nothing of the old ones."""
    (tmp_path / "a").write_text("old")
    with staging(tmp_path / "b") as folder:
        for name in "ab":
            (folder / name).write_text(f"new {name}")
        publish([folder / "a", folder / "b"], tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "new a", "b": "new b"}


@pytest.mark.parametrize("error", [OSError(5, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_publishing_all_or_none(tmp_path, monkeypatch, failing, error):
    """Whichever file cannot be moved, the old ones come back and no new one stays."""
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    replace = os.replace

    def broken(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / failing and not Path(source).name.endswith(".replaced"):
            raise error
        replace(source, target)

    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt

    def work() -> None:
        with staging(tmp_path / "c") as folder:
            for name in "abc":
                (folder / name).write_text(f"new {name}")
            monkeypatch.setattr(os, "replace", broken)
            publish([folder / "a", folder / "b", folder / "c"], tmp_path)

    with pytest.raises(expected):
        work()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old a", "c": "old c"}
