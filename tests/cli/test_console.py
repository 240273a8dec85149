"""Errors, interruptions, encodings and colours of every command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from vit_export.cli.console import Commands, emit, what_remains
from vit_export.errors import ArtifactError


@click.group(cls=Commands)
def group() -> None:
    """Some commands."""


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
