"""What every command shares: errors into messages, results as text and JSON, progress."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from vit_export.errors import OutputError, VitExportError, nearest

EXTRA_OF = {  # what to install when a backend is missing
    **dict.fromkeys(("onnxruntime", "PIL"), "cpu"),
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"), "export"),
    "huggingface_hub": "hub",
    "matplotlib": "bench",
    "cuda": "tensorrt",
}
INTERRUPTED, TERMINATED = 130, 143  # 128 + signal number, as shells report it


class Commands(click.Group):
    """A group that turns our errors into messages, and a mistyped command into a suggestion."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a command, or offer the nearest ones."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            raise click.UsageError(f"no command {name!r}{nearest(name, self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]  # click's overloads tell standalone modes apart
        self, args: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Run a command; exit with 0, 1 (failed), 2 (wrong usage), or 128 + signal."""
        kwargs.pop("standalone_mode", None)
        argv = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in argv
        if os.environ.get("NO_COLOR"):  # https://no-color.org
            kwargs["color"] = False
        try:
            with _unwinding_on_sigterm():
                status = super().main(argv, standalone_mode=False, **kwargs)
        except VitExportError as error:
            fail(str(error), error.exit_code, as_json)
        except click.ClickException as error:
            told = _with_nearest(error) if isinstance(error, click.NoSuchOption) else error
            if as_json:
                fail(told.format_message(), told.exit_code, as_json)
            told.show()
            sys.exit(told.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package not in EXTRA_OF:
                raise
            wanted = f"pip install 'vit-export[{EXTRA_OF[package]}]'"
            fail(f"{package} is not installed; install it with: {wanted}", 1, as_json)
        except (KeyboardInterrupt, click.Abort) as error:
            fail(str(error) or "interrupted; nothing was left behind", INTERRUPTED, as_json)
        except Terminated:
            fail("terminated; nothing was left behind", TERMINATED, as_json)
        sys.exit(status if isinstance(status, int) else 0)


def _with_nearest(error: click.NoSuchOption) -> click.NoSuchOption:
    """The same error with the nearest option alone: click offers others before it."""
    close = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1, cutoff=0.0)
    return click.NoSuchOption(error.option_name, possibilities=close, ctx=error.ctx)


class Terminated(SystemExit):
    """A termination, on its way up the stack."""


@contextlib.contextmanager
def _unwinding_on_sigterm() -> Iterator[None]:
    """Let a termination unwind the stack, so that temporary files go."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str, status: int, as_json: bool) -> NoReturn:
    """Say what went wrong, as JSON too where that was asked for, and exit."""
    click.echo(f"Error: {message}", err=True)
    if as_json:
        from vit_export.cli.report.jsonline import to_json

        with contextlib.suppress(OutputError, BrokenPipeError):  # the status tells
            _say(to_json({"error": message}))
    sys.exit(status)


def emit(as_json: bool, data: Any, text: str) -> None:
    """Show text; with --json show it on standard error, and end with one JSON object.

    Raises:
        OutputError: Standard output cannot be written, on a full disk for one.
    """
    if not as_json:
        _say(text)
        return
    from vit_export.cli.report.jsonline import to_json

    click.echo(text, err=True)
    _say(to_json(data))


def _say(line: str) -> None:
    """Write a line to standard output."""
    try:
        click.echo(line)
    except BrokenPipeError:  # the reader has had enough, which click answers
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to standard output: {reason}") from error


@contextlib.contextmanager
def progress_bar() -> Iterator[Any]:
    """A `Progress` on standard error, which leaves a clean line behind."""
    from vit_export.cli.report.progress_bar import TerminalProgress

    progress = TerminalProgress()
    try:
        yield progress
    finally:
        progress.close()
