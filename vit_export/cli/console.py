"""What every command shares: error messages, output as text and JSON, progress."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vit_export.errors import OutputError, VitExportError, nearest

if TYPE_CHECKING:
    from vit_export.cli.report.progress_bar import TerminalProgress

EXTRA_OF = {  # the extra that installs a missing package
    **dict.fromkeys(("onnxruntime", "PIL"), "cpu"),
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"), "export"),
    "huggingface_hub": "hub",
    "matplotlib": "bench",
    "cuda": "tensorrt",
}
INTERRUPTED, TERMINATED = 130, 143  # 128 + signal number, as shells report it
NOTHING_LEFT = "nothing was left behind"


class Commands(click.Group):
    """A group that turns errors into messages, and offers the nearest command to a mistyped one."""

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
            fail(error.message, error.exit_code, as_json, hint=error.hint)
        except click.ClickException as error:
            if isinstance(error, click.NoSuchOption):  # click offers less similar ones first
                name, known = error.option_name, error.possibilities or ()
                nearest_one = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                error = click.NoSuchOption(name, possibilities=nearest_one, ctx=error.ctx)
            if as_json:
                fail(error.format_message(), error.exit_code, as_json)
            error.show()
            sys.exit(error.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package not in EXTRA_OF:
                raise
            install = f"pip install 'vit-export[{EXTRA_OF[package]}]'"
            fail(f"{package} is not installed", 1, as_json, hint=install)
        except (KeyboardInterrupt, click.Abort) as error:
            fail(f"interrupted; {str(error) or NOTHING_LEFT}", INTERRUPTED, as_json)
        except Terminated as error:
            fail(f"terminated; {error}", TERMINATED, as_json)
        sys.exit(status if isinstance(status, int) else 0)


class Terminated(SystemExit):
    """Raised on SIGTERM; its text says what the command leaves behind."""


@contextlib.contextmanager
def _unwinding_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that temporary files are removed."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated(NOTHING_LEFT)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def what_remains(remains: Callable[[], str]) -> Iterator[None]:
    """Add what a command leaves behind to the message of its interruption or termination."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise click.Abort(remains()) from error
    except Terminated as error:
        raise Terminated(remains()) from error


def fail(message: str, status: int, as_json: bool, *, hint: str = "") -> NoReturn:
    """Print an error and its hint, with --json as a JSON object too, and exit."""
    _print_error(message, hint)
    if as_json:
        with contextlib.suppress(OutputError, BrokenPipeError):  # the exit status still tells
            _print_json(_without_empty(error=message, hint=hint))
    sys.exit(status)


def emit(
    as_json: bool, data: dict[str, Any], text: str, *, failures: Sequence[str] = (), hint: str = ""
) -> None:
    """Print a result; with --json as text on standard error, and one JSON object at the end.

    Failures are what went wrong although there is a result: the exit status is then 1, and the
    JSON object has them as `error`.
    """
    error = "; ".join(failures)
    if as_json:
        click.echo(text, err=True)
        _print_json(data | _without_empty(error=error, hint=hint))
    else:
        _print(text)
    if error:
        _print_error(error, hint)
        sys.exit(1)


def _without_empty(**texts: str) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text}


def attributes(value: object, names: str) -> dict[str, Any]:
    """Return some attributes of a result by name, for its JSON object."""
    return {name: getattr(value, name) for name in names.split()}


def _print_error(error: str, hint: str) -> None:
    click.echo(f"Error: {error}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


def _print_json(data: Any) -> None:
    from vit_export.cli.report.jsonline import to_json

    line = to_json(data)
    if _printable(line) != line:
        import json

        line = json.dumps(json.loads(line))  # escapes everything beyond ASCII
    _print(line)


def _print(text: str) -> None:
    """Write text to standard output; characters that its encoding lacks become `?`.

    Bytes of a file name that are not UTF-8 become escapes as on standard error.
    """
    try:
        click.echo(_printable(text))
    except BrokenPipeError:  # the pipe was closed; click handles it
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to standard output: {reason}") from error


def _printable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = text.encode("utf-8", "backslashreplace").decode()  # surrogates of file names
    return text.encode(encoding, "replace").decode(encoding)


def progress_bar() -> contextlib.closing[TerminalProgress]:
    """Show progress on standard error; the line is cleared at the end."""
    from vit_export.cli.report.progress_bar import TerminalProgress

    return contextlib.closing(TerminalProgress())
