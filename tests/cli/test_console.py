"""Errors, interruptions, encodings, colours, JSON and progress of every command."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vit_export.cli.console import Commands, ProgressBar, emit, to_json, what_remains
from vit_export.cli.main import main
from vit_export.errors import ArtifactError, ProviderWarning


@click.group(cls=Commands)
def group() -> None:
    """Some commands."""


@group.command()
def warned() -> None:
    """Warns twice of the same provider, and of something else."""
    for _ in range(2):
        warnings.warn("m.onnx runs on 'cpu': no GPU", ProviderWarning, stacklevel=2)
    warnings.warn("something else", UserWarning, stacklevel=2)


@group.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("--resumable", is_flag=True)
@click.option("--number", type=int, default=signal.SIGTERM)
def ended(as_json: bool, resumable: bool, number: int) -> None:
    """Sends itself a signal."""
    if not resumable:
        os.kill(os.getpid(), number)
    with what_remains(lambda: "resume with --resume"):
        os.kill(os.getpid(), number)


@group.command()
@click.option("--json", "as_json", is_flag=True)
def bytes_in_name(as_json: bool) -> None:
    """Prints the name of a file that is not UTF-8."""
    emit(as_json, {"image": "caf\udce9.jpg"}, "caf\udce9.jpg")


@group.command()
@click.option("--json", "as_json", is_flag=True)
def failing(as_json: bool) -> None:
    """Fails, with a hint."""
    raise ArtifactError("the file is damaged", hint="copy it again")


@group.command()
@click.option("--json", "as_json", is_flag=True)
def partly(as_json: bool) -> None:
    """Has a result and a failure, both with letters beyond Latin."""
    emit(as_json, {"label": "кот €"}, "label: кот €", failures=["кот.jpg: no image"])


@group.command()
def coloured() -> None:
    """Warns in yellow."""
    click.secho("careful", fg="yellow", err=True)


@group.command()
@click.option("--precision")
@click.option("--fp16-recipe")
@click.option("--json", is_flag=True)
def narrowed(**_: object) -> None:
    """Has options that click thinks similar."""


def test_a_provider_warning_is_a_note_once(capfd):
    """Other warnings stay as Python prints them."""
    with pytest.warns(UserWarning, match="something else"), pytest.raises(SystemExit):
        group.main(["warned"])
    assert capfd.readouterr().err == "note: m.onnx runs on 'cpu': no GPU\n"


def test_a_mistyped_option_is_answered_with_the_nearest():
    """With one, not with all that are similar."""
    result = CliRunner().invoke(group, ["narrowed", "--precison", "fp16"])
    assert result.exit_code == 2
    assert "--precision" in result.stderr
    assert "--fp16-recipe" not in result.stderr
    assert "--json" not in result.stderr


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
@pytest.mark.parametrize(
    ("option", "rest"),
    [((), "nothing was left behind"), (("--resumable",), "resume with --resume")],
)
def test_a_stopped_command_reports_what_remains(number, status, word, option, rest):
    """In JSON too, with the status that shells give it."""
    result = CliRunner().invoke(group, ["ended", "--json", "--number", str(int(number)), *option])
    assert result.exit_code == status
    assert json.loads(result.stdout.splitlines()[-1]) == {"error": f"{word}; {rest}"}
    assert f"Error: {word}; {rest}" in result.stderr


def test_the_hint_has_a_line_and_a_json_key_of_its_own():
    """The message alone says what happened."""
    result = CliRunner().invoke(group, ["failing", "--json"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["Error: the file is damaged", "hint: copy it again"]
    assert json.loads(result.stdout) == {"error": "the file is damaged", "hint": "copy it again"}


def test_a_result_with_a_failure_is_printed_and_exits_with_1():
    """JSON has the result and the error in one object."""
    result = CliRunner().invoke(group, ["partly", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"label": "кот €", "error": "кот.jpg: no image"}
    assert result.stderr.splitlines()[-1] == "Error: кот.jpg: no image"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_letters_beyond_the_encoding_of_the_output_do_not_fail(options):
    """Replaced in text, escaped in JSON."""
    result = CliRunner(charset="cp1252").invoke(group, ["partly", *options])
    assert result.exit_code == 1
    line = result.stdout_bytes.decode("cp1252").splitlines()[-1]
    if options:
        assert json.loads(line) == {"label": "кот €", "error": "кот.jpg: no image"}
    else:
        assert line == "label: ??? €"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_file_names_that_are_not_utf8_are_printed_with_escapes(options):
    """Not as a traceback, nor as `?`."""
    result = CliRunner().invoke(group, ["bytes-in-name", *options])
    assert result.exit_code == 0
    line = result.stdout.splitlines()[-1]
    if options:
        assert json.loads(line) == {"image": "caf\udce9.jpg"}
    else:
        assert line == "caf\\udce9.jpg"


@pytest.mark.parametrize(("wish", "colour"), [("1", False), ("", True)])
def test_no_color_is_honoured(wish, colour):
    """On a terminal as well; an empty value is no wish (no-color.org)."""
    result = CliRunner().invoke(group, ["coloured"], env={"NO_COLOR": wish}, color=True)
    assert result.exit_code == 0
    assert ("\x1b[" in result.stderr) == colour
    assert "careful" in result.stderr


@pytest.mark.parametrize("arguments", [["variants"], ["variants", "--json"]])
def test_a_full_standard_output_is_an_error_message(arguments):
    """Without a traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vit_export", *arguments], stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: cannot write to standard output: No space left on device"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["variants"], ""), (["inspect", "none.onnx", "--json"], "no such file")],
)
def test_a_closed_pipe_is_no_traceback(arguments, words):
    """`vit-export variants | head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "vit_export", *arguments], stdout=write,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@dataclass
class Point:
    """Something to print."""

    x: float
    where: Path
    rows: tuple[object, ...]


def test_json_is_one_line_that_strict_parsers_read():
    """NaN and infinity are null; tuples are lists; paths are text."""
    value = {
        "p": Point(float("nan"), Path("a/b"), (1, float("inf"), {2: -float("inf")})),
        "猫": True,
    }
    line = to_json(value)
    assert "\n" not in line

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    assert json.loads(line, parse_constant=refuse) == {
        "p": {"x": None, "where": "a/b", "rows": [1, None, {"2": None}]}, "猫": True,
    }  # fmt: skip


def test_a_whole_result_becomes_json(tiny_export):
    data = json.loads(to_json(tiny_export))
    assert data["path"] == str(tiny_export.path)
    (*_, last) = data["manifest"]["certificate"]
    assert last["passed"] is True
    assert last["hop"] == "onnx -> simplified"


def test_file_names_that_are_not_utf8_are_escaped():
    """Python stores such a byte as a surrogate."""
    line = to_json({"image": Path("caf\udce9.jpg"), "score": float("nan"), "猫": (1,)})
    assert line.isascii()
    assert json.loads(line) == {"image": "caf\udce9.jpg", "score": None, "猫": [1]}


class Terminal(io.StringIO):
    """A stream that reports to be a terminal."""

    def isatty(self) -> bool:
        return True


def run_stages(stream: io.StringIO) -> str:
    with ProgressBar(stream) as progress:
        progress("load")
        progress("torch [x]", 1, 4)
        progress("torch [x]", 4, 4)
        progress.line("a line that stays")
    return stream.getvalue()


def test_a_log_gets_one_line_per_stage():
    assert run_stages(io.StringIO()) == "load\ntorch [x]\na line that stays\n"


def test_a_terminal_gets_a_bar_that_is_removed_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = run_stages(Terminal())
    assert "torch [x]" in shown
    assert "4/4" in shown
    assert "a line that stays\n" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert shown.endswith("\x1b[1A\x1b[2K")  # one line up, erased


def test_no_color_leaves_the_bar_without_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run_stages(Terminal())


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert run_stages(Terminal()) == run_stages(io.StringIO())


def test_a_command_runs_in_any_thread_of_a_program():
    """Only the main thread can handle SIGTERM, so elsewhere it stays with the program."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(CliRunner().invoke, main, ["variants", "--json"]).result()
    assert result.exit_code == 0, result.output
