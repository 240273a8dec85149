"""What every command does when it is ended, cannot be heard, or may not use colours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from vit_export.cli.console import Commands


@click.group(cls=Commands)
def group() -> None:
    """Some commands."""


@group.command()
@click.option("--json", "as_json", is_flag=True)
def ended(as_json: bool) -> None:
    """Is told to end."""
    os.kill(os.getpid(), signal.SIGTERM)


@group.command()
def coloured() -> None:
    """Warns in yellow."""
    click.secho("careful", fg="yellow", err=True)


@group.command()
@click.option("--precision")
@click.option("--fp16-recipe")
@click.option("--json", is_flag=True)
def narrowed(**_: object) -> None:
    """Takes options that click finds alike."""


def test_a_mistyped_option_is_answered_with_the_nearest():
    """With one, not with all that share some letters."""
    result = CliRunner().invoke(group, ["narrowed", "--precison", "fp16"])
    assert result.exit_code == 2
    assert "--precision" in result.stderr
    assert "--fp16-recipe" not in result.stderr
    assert "--json" not in result.stderr


def test_a_terminated_command_says_so_in_json_too():
    """With the status that shells give it."""
    result = CliRunner().invoke(group, ["ended", "--json"])
    assert result.exit_code == 143
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "error": "terminated; nothing was left behind"
    }
    assert "Error: terminated" in result.stderr


@pytest.mark.parametrize(("wish", "colour"), [("1", False), ("", True)])
def test_no_color_is_honoured(wish, colour):
    """On a terminal as well; an empty value is no wish (no-color.org)."""
    result = CliRunner().invoke(group, ["coloured"], env={"NO_COLOR": wish}, color=True)
    assert result.exit_code == 0
    assert ("\x1b[" in result.stderr) == colour
    assert "careful" in result.stderr


@pytest.mark.parametrize("arguments", [["variants"], ["variants", "--json"]])
def test_a_standard_output_that_is_full_is_a_failure_in_words(arguments):
    """Not a traceback, and not the status of an interpreter that could not end."""
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
def test_a_reader_that_has_gone_is_no_error_of_ours(arguments, words):
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
