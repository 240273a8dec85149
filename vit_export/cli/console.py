"""What every command shares: error messages, output as text and JSON, progress."""

import contextlib
import difflib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from vit_export.errors import OutputError, ProviderWarning, VitExportError, nearest

EXTRA_OF = {  # the extra that installs a missing package
    **dict.fromkeys(("onnxruntime", "PIL"), "cpu"),
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"), "export"),
    "huggingface_hub": "hub",
    "cuda": "tensorrt",
}
NOTHING_LEFT = "nothing was left behind"


class Terminated(SystemExit):
    """Raised on SIGTERM, so that temporary files are removed; its text says what remains."""


class Commands(click.Group):
    """A group that turns errors into messages, and offers the nearest command to a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            raise click.UsageError(f"no command {name!r}{nearest(name, self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]  # click's overloads tell standalone modes apart
        self, args: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Run a command; exit with 0, 1 (failed), 2 (wrong usage), or 128 + signal."""
        kwargs["standalone_mode"] = False
        argv = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in argv
        if os.environ.get("NO_COLOR"):  # https://no-color.org
            kwargs["color"] = False
        try:
            with _terminating(), _notes():
                status = super().main(argv, **kwargs)
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
            fail(f"interrupted; {str(error) or NOTHING_LEFT}", 128 + signal.SIGINT, as_json)
        except Terminated as error:
            fail(f"terminated; {error}", 128 + signal.SIGTERM, as_json)
        sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM; only the main thread of a program can."""

    def terminate(_signal: int, _frame: object) -> NoReturn:
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
def _notes() -> Iterator[None]:
    """Print a ProviderWarning as a note, once."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, ProviderWarning):
                click.echo(f"note: {message}", err=True)
            else:
                show(message, category, *rest)

        warnings.showwarning = note  # type: ignore[assignment]  # `rest` stands for the others
        warnings.simplefilter("once", ProviderWarning)
        yield


@contextlib.contextmanager
def what_remains(remains: Callable[[], str]) -> Iterator[None]:
    """Add what a command leaves behind to the message of its interruption or termination."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise click.Abort(remains()) from error
    except Terminated as error:
        raise Terminated(remains()) from error


def fail(
    message: str, status: int, as_json: bool, *, hint: str = "", data: Mapping[str, Any] = {}
) -> NoReturn:
    """Print an error and its hint, with --json as a JSON object too, and exit."""
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    if as_json:
        with contextlib.suppress(OutputError, BrokenPipeError):  # the exit status still tells
            _print(to_json({**data, "error": message, **({"hint": hint} if hint else {})}))
    sys.exit(status)


def emit(
    as_json: bool, data: dict[str, Any], text: str, *, failures: Sequence[str] = (), hint: str = ""
) -> None:
    """Print a result; with --json as text on standard error, and one JSON object at the end.

    With failures, which a command may have beside its result, the exit status is 1.
    """
    if as_json:
        click.echo(text, err=True)
    else:
        _print(text)
    if failures:
        fail("; ".join(failures), 1, as_json, hint=hint, data=data)
    if as_json:
        _print(to_json(data))


def attributes(value: object, names: str) -> dict[str, Any]:
    """Return some attributes of an object by name."""
    return {name: getattr(value, name) for name in names.split()}


def to_json(value: Any) -> str:
    """Return one line of JSON; numbers that are not finite become null, as JSON has none.

    The line is ASCII with escapes where standard output lacks a letter, and where the name of a
    file has bytes that are not UTF-8.
    """
    import msgspec

    from vit_export.artifact.typed_json import plain_number

    def plain(item: Any) -> Any:
        return str(item) if isinstance(item, Path) else plain_number(item)

    try:
        encoded = msgspec.json.encode(value, enc_hook=plain)
        line = msgspec.json.format(encoded, indent=0).decode()
        line.encode(_encoding())
    except UnicodeEncodeError:  # a letter, or a surrogate, as Python stores such a byte
        text = json.dumps(msgspec.to_builtins(value, enc_hook=plain, str_keys=True))
        return json.dumps(json.loads(text, parse_constant=lambda _: None))
    return line


def _print(text: str) -> None:
    """Write text to standard output; letters that its encoding lacks become `?`.

    Bytes of a file name that are not UTF-8 become escapes as on standard error.
    """
    text = text.encode("utf-8", "backslashreplace").decode()  # surrogates of file names
    try:
        click.echo(text.encode(_encoding(), "replace").decode(_encoding()))
    except BrokenPipeError:  # the pipe was closed; click handles it
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to standard output: {reason}") from error


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


class ProgressBar(contextlib.AbstractContextManager["ProgressBar"]):
    """A `vit_export.progress.Progress`: a bar on a terminal, a line per stage elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        stream = stream or sys.stderr
        self._console = Console(file=stream, force_terminal=stream.isatty())
        # whether the stream is a terminal on which a bar can be redrawn
        self.live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = Progress(
            SpinnerColumn("line"),  # ASCII: any terminal can show it
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[steps]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", steps="")
        self._stage = ""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        if self.live:
            steps = f"{done}/{total}" if total else ""
            self._bar.tasks[0].total = total or None  # `update` ignores None
            self._bar.update(self._task, description=stage, completed=done, steps=steps)
            self._bar.start()
        elif stage != self._stage:
            self.line(stage)
        self._stage = stage

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._stage = ""

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._bar.stop()
