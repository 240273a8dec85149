"""Nothing half-written: files are made in a folder beside their place, and moved when good."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vit_export.errors import OutputError


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A folder on the same disk as an output, gone when the context is left, however it is.

    Raises:
        OutputError: The output cannot be written; an existing file is left as it was.
    """
    check_writable(output)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    try:
        yield folder
    except BrokenPipeError:
        raise  # of whoever is told how far the work is; no file is one
    except OSError as error:
        raise OutputError(
            f"cannot write {_at_fault(error, output)}: {error.strerror or error}; nothing was "
            "left behind"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(output: Path) -> None:
    """Raise OutputError where no file can be made at that place, before any work is done."""
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder; name a file with -o")
    if not output.parent.is_dir():
        raise OutputError(
            f"cannot write {output}: there is no folder {output.parent}; make it first: "
            f"mkdir -p {output.parent}"
        )
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"cannot write {output}: the folder {output.parent} is read-only")


def _at_fault(error: OSError, output: Path) -> Path:
    """The companion beside an output that an error is about; otherwise the output."""
    named = [Path(name) for name in (error.filename2, error.filename) if isinstance(name, str)]
    return next((path for path in named if path.parent == output.parent), output)


def publish(files: Sequence[Path], folder: Path) -> None:
    """Move finished files into a folder, all or none; the last one is the artifact itself.

    At any moment a file stands under each name that had one, even when the process is killed.

    Args:
        files: Files in a staging folder, which also keeps what they replace until all is done.
        folder: Where they go.
    """
    replaced: list[tuple[Path, Path]] = []
    added: list[Path] = []
    try:
        for file in files:
            target = folder / file.name
            if os.path.lexists(target):
                backup = file.with_name(file.name + ".replaced")
                _keep(target, backup)
                replaced.append((backup, target))
            else:
                added.append(target)
            os.replace(file, target)
    except BaseException:  # an interrupt too: what was there comes back
        for backup, target in replaced:
            os.replace(backup, target)
        for target in added:
            target.unlink(missing_ok=True)
        raise


def _keep(file: Path, backup: Path) -> None:
    """Give a file a second name; copy it where the disk knows no links."""
    try:
        os.link(file, backup)
    except OSError:
        shutil.copy2(file, backup, follow_symlinks=False)
