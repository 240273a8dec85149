"""`vit-export package`: a folder as text and JSON, and wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vit_export.cli.main import main
from vit_export.pipeline.export import ExportResult


def call(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def last_json(result: Result) -> dict:
    """The last line of standard output."""
    return json.loads(result.stdout.splitlines()[-1])


def test_package_writes_a_folder_named_after_artifact_and_target(
    tiny_export: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text names it, and what to read next; a second run does not replace it."""
    monkeypatch.chdir(tmp_path)
    result = call("package", tiny_export.path, "--target", "cpp")
    assert result.exit_code == 0, result.output
    assert "next: read tiny-cpp/README.md" in result.stdout
    assert (tmp_path / "tiny-cpp" / "CMakeLists.txt").is_file()
    again = call("package", tiny_export.path, "--target", "cpp", "--json")
    assert again.exit_code == 1
    assert last_json(again) == {
        "error": "cannot write tiny-cpp: the folder is not empty",
        "hint": "name another folder with -o, or empty this one",
    }


def test_package_as_json_lists_the_files(tiny_export: ExportResult, tmp_path: Path) -> None:
    """Relative to the folder."""
    result = call("package", tiny_export.path, "--target", "cpp", "-o", tmp_path / "made", "--json")
    assert result.exit_code == 0, result.output
    data = last_json(result)
    assert data["folder"] == str(tmp_path / "made")
    assert data["target"] == "cpp"
    assert "model/tiny.onnx" in data["files"]
    assert data["size_bytes"] > tiny_export.path.stat().st_size


def test_the_cmake_folder_is_printed_alone() -> None:
    """So that a build can say -S $(vit-export package --cmake-dir)."""
    folder = call("package", "--cmake-dir").stdout.removesuffix("\n")
    assert (Path(folder) / "CMakeLists.txt").is_file()
    assert last_json(call("package", "--cmake-dir", "--json")) == {"cmake_dir": folder}


def test_wrong_usage_of_package_says_what_is_expected(tiny_export: ExportResult) -> None:
    """Exit status 2."""
    for arguments, message in (
        ((), "no artifact was given"),
        ((tiny_export.path,), "--target is missing"),
        ((tiny_export.path, "--target", "cpq"), "unknown target 'cpq'; did you mean 'cpp'?"),
        ((tiny_export.path, "--cmake-dir"), "--cmake-dir prints a folder"),
    ):
        result = call("package", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
