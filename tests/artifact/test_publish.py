"""Finished files are moved in one step; a failure leaves every file as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vit_export.artifact.publish import (
    check_golden_not_shared,
    check_output_name,
    publish,
    staging,
)
from vit_export.errors import GateError, OutputError, VitExportError


def test_the_staging_folder_is_beside_the_output_and_is_removed(tmp_path):
    with staging(tmp_path / "m.onnx") as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(".m.onnx.")
        (folder / "half").write_text("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [GateError("no"), KeyboardInterrupt(), ValueError("bug")])
def test_the_staging_folder_is_removed_after_a_failure(tmp_path, error):
    def work() -> None:
        with staging(tmp_path / "m.onnx") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        work()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_the_output(tmp_path):
    with (
        pytest.raises(OutputError, match=r"m\.onnx: No space left on device; nothing was left"),
        staging(tmp_path / "m.onnx"),
    ):
        raise OSError(28, os.strerror(28))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_not_called_the_output(tmp_path):
    """Only the files of the output count as "cannot write"."""
    with (
        pytest.raises(
            VitExportError, match=r"m\.onnx was not written: .*photo\.jpg: Permission"
        ) as caught,
        staging(tmp_path / "m.onnx"),
    ):
        raise PermissionError(13, os.strerror(13), str(tmp_path / "data" / "photo.jpg"))
    assert not isinstance(caught.value, OutputError)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for output, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "m.onnx", "mkdir -p"),
        (tmp_path / "file" / "m.onnx", "there is no folder"),
    ):
        with pytest.raises(OutputError, match=reason), staging(output):
            pytest.fail("the work began")


def test_a_bare_name_is_written_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with staging(Path("m.onnx")) as folder:
        (folder / "m.onnx").write_text("new")
        publish([folder / "m.onnx"], Path())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_publishing_replaces_all_files(tmp_path):
    (tmp_path / "a").write_text("old")
    with staging(tmp_path / "b") as folder:
        for name in "ab":
            (folder / name).write_text(f"new {name}")
        publish([folder / "a", folder / "b"], tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "new a", "b": "new b"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_all_files_are_published_or_none(tmp_path, monkeypatch, failing, error):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    replace = os.replace

    def broken(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / failing and not Path(source).name.endswith(".replaced"):
            raise error(5, "broken", str(source), None, str(target))
        replace(source, target)

    expected = OutputError if error is OSError else KeyboardInterrupt

    def work() -> None:
        with staging(tmp_path / "c") as folder:
            for name in "abc":
                (folder / name).write_text(f"new {name}")
            monkeypatch.setattr(os, "replace", broken)
            publish([folder / "a", folder / "b", folder / "c"], tmp_path)

    with pytest.raises(expected):
        work()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old a", "c": "old c"}


def test_an_interrupt_at_any_line_of_publishing_leaves_the_old_files(tmp_path):
    old = {"a": "old a", "c": "old c"}
    for name, content in old.items():
        (tmp_path / name).write_text(content)

    def interrupted_at(stop: int) -> bool:
        lines = 0

        def trace(frame, event, _argument):
            nonlocal lines
            if frame.f_code.co_name not in ("publish", "_keep"):
                return None
            if event == "line":
                lines += 1
                if lines == stop:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        try:
            with staging(tmp_path / "c") as folder:
                for name in "abc":
                    (folder / name).write_text(f"new {name}")
                sys.settrace(trace)
                publish([folder / "a", folder / "b", folder / "c"], tmp_path)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    stop = 1
    while interrupted_at(stop):
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == old, stop
        stop += 1
    assert stop > 20
    assert (tmp_path / "c").read_text() == "new c"


KILLED = """
import os, signal, sys
from pathlib import Path
from vit_export.artifact import publish
replace, left = os.replace, [int(sys.argv[2])]
def killing(source, target):
    replace(source, target)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = killing
folder = Path(sys.argv[1])
with publish.staging(folder / "b") as stage:
    for name in "ab":
        (stage / name).write_text("new")
    publish.publish([stage / "a", stage / "b"], folder)
"""


@pytest.mark.parametrize("moves", [1, 2])
def test_a_killed_process_leaves_a_complete_file_under_each_name(tmp_path, moves):
    for name in "ab":
        (tmp_path / name).write_text("old")
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(moves)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    found = [(tmp_path / name).read_text() for name in "ab"]
    assert found == ["new"] * moves + ["old"] * (2 - moves)


@pytest.mark.parametrize("links", [True, False])
def test_replaced_files_are_restored_with_their_links(tmp_path, monkeypatch, links):
    def refuse(*_paths: Path, follow_symlinks: bool) -> None:
        raise OSError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("old a")
    (tmp_path / "b").symlink_to("nowhere")
    (tmp_path / "c").mkdir()  # cannot be replaced by a file

    def work() -> None:
        with staging(tmp_path / "d") as folder:
            for name in "abc":
                (folder / name).write_text("new")
            publish([folder / "a", folder / "b", folder / "c"], tmp_path)

    with pytest.raises(OutputError, match=r"c: Is a directory; nothing was left behind"):
        work()
    assert (tmp_path / "a").read_text() == "old a"
    assert os.readlink(tmp_path / "b") == "nowhere"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("own", "other"), [("b.onnx", "b.engine"), ("b.plan", "b.onnx"), ("b.trt", "b.engine")]
)
def test_a_shared_golden_file_is_not_replaced(tmp_path: Path, own: str, other: str) -> None:
    place, golden = tmp_path / "b.golden.npz", tmp_path / "source.golden.npz"
    golden.write_bytes(b"truth")
    check_golden_not_shared(tmp_path / own, golden)
    place.write_bytes(b"another")
    check_golden_not_shared(tmp_path / own, golden)
    (tmp_path / other).touch()
    with pytest.raises(OutputError, match=rf"replace b\.golden\.npz, which {other} is measured"):
        check_golden_not_shared(tmp_path / own, golden)
    place.write_bytes(b"truth")
    check_golden_not_shared(tmp_path / own, golden)


def test_a_folder_under_the_name_of_the_golden_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.golden.npz").mkdir()
    with pytest.raises(OutputError, match=r"b\.golden\.npz: it is a folder"):
        check_output_name(tmp_path / "b.onnx")
