"""Open a file that a user named, refusing whatever is not a regular file; replace a file."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vit_export.errors import ArtifactError, VitExportError, with_article


def open_file(
    path: str | os.PathLike[str],
    *,
    what: str = "file",
    error: type[VitExportError] = ArtifactError,
) -> BinaryIO:
    """Open a regular file for reading bytes; messages say `what` it should be.

    Opening a FIFO blocks, and a device such as /dev/zero never ends. So the kind of the
    file is checked before it is opened.
    """
    path = as_path(path, error)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(f"{path}: is a folder, expected {with_article(what)}")
        if not stat.S_ISREG(mode):
            raise error(f"{path}: is a pipe, socket or device, expected {with_article(what)}")
        return path.open("rb")
    except FileNotFoundError:
        raise error(f"{path}: no such {what}") from None
    except (OSError, ValueError) as cause:  # ValueError: a null byte in the name
        raise error(f"{path}: cannot be read ({_reason(cause)})") from cause


def as_path(path: str | os.PathLike[str], error: type[VitExportError] = ArtifactError) -> Path:
    """Return a path that a caller gives; an error where it is none, or empty."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise error(f"{path!r}: not the path of a file, expected text or a pathlib.Path")
    return Path(path)


def read_text(
    path: str | os.PathLike[str],
    *,
    what: str = "file",
    error: type[VitExportError] = ArtifactError,
) -> str:
    """Read a regular file of UTF-8 text."""
    try:
        with open_file(path, what=what, error=error) as stream:
            return stream.read().decode("utf-8-sig")  # editors may write a byte order mark
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: cannot be read as {with_article(what)} ({_reason(cause)})") from cause


def replace_file(path: Path, data: bytes) -> None:
    """Write a file; several processes may do so at once, and a reader sees a whole file."""
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)
