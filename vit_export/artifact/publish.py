"""Write an artifact: make its files in a temporary folder, then move all of them, or none."""

import contextlib
import errno
import filecmp
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from vit_export.artifact.golden import golden_path
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import pack, stamp
from vit_export.artifact.vocabulary import ENGINE_SUFFIXES
from vit_export.errors import ArtifactError, OutputError, UsageError, VitExportError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output_name(path: Path) -> None:
    """Check that an .onnx file and its golden file can be written, before any work is done."""
    if path.suffix != ".onnx":
        raise UsageError(f"the output {path} must end in .onnx")
    for file in (path, golden_path(path)):
        check_writable(file)


def check_writable(output: Path) -> None:
    """Raise OutputError when no file can be written there, before any work is done."""
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder", hint="name a file with -o")
    if not output.parent.is_dir():
        raise OutputError(
            f"cannot write {output}: there is no folder {output.parent}",
            hint=f"mkdir -p {output.parent}",
        )
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"cannot write {output}: the folder {output.parent} is read-only")


def check_golden_not_shared(path: Path, golden: Path) -> None:
    """Check that a new artifact does not replace the golden file of another one.

    `b.onnx`, `b.engine` and `b.plan` are all measured with `b.golden.npz`, so `golden` must be
    equal to it.
    """
    place = golden_path(path)
    siblings = [path.with_suffix(suffix) for suffix in (".onnx", *ENGINE_SUFFIXES)]
    other = next((file for file in siblings if file != path and file.exists()), None)
    if other and place.is_file() and not filecmp.cmp(place, golden, shallow=False):
        raise OutputError(
            f"cannot write {path}: its golden file would replace {place.name}, which {other.name} "
            "is measured with, and the two files differ",
            hint=f"choose another name with -o, or remove {other.name} if you no longer need it",
        )


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Make a temporary folder on the disk of an output; it is removed at the end, in any case."""
    check_writable(output)
    folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    except BrokenPipeError:
        raise  # of the terminal or pipe that shows the progress
    except OSError as error:
        raise _refusal(error, folder, output) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Make a temporary folder whose content becomes that of `output`, a new or empty folder.

    Nothing is left behind where the context fails.
    """
    exists = output.is_dir()
    if exists and any(output.iterdir()):
        raise OutputError(
            f"cannot write {output}: the folder is not empty",
            hint="name another folder with -o, or empty this one",
        )
    if os.path.lexists(output) and not exists:
        raise OutputError(f"cannot write {output}: it is no folder", hint="name a folder with -o")
    name = f".{output.absolute().name}.{secrets.token_hex(4)}.tmp"
    folder = output / name if exists else output.with_name(name)
    check_writable(folder if exists else output)
    try:
        folder.mkdir()
        yield folder
        if exists:  # kept: it may be the current folder, or a mount point
            _move_content(folder, output)
        else:
            folder.rename(output)
    except OSError as error:
        raise _refusal(error, folder, output) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_content(folder: Path, target: Path) -> None:
    """Move everything in a folder into another one, or nothing."""
    moved: list[Path] = []
    try:
        for path in sorted(folder.iterdir()):
            moved.append(target / path.name)
            path.rename(moved[-1])
    except BaseException:  # an interrupt too
        for path in filter(os.path.lexists, moved):
            path.rename(folder / path.name)
        raise


def _refusal(error: OSError, folder: Path, output: Path) -> VitExportError:
    """Return the error that names the file which the operating system refused."""
    reason = f"{error.strerror or error}; nothing was left behind"
    names = [Path(name) for name in (error.filename2, error.filename) if isinstance(name, str)]
    for path in names:
        if path.parent == output.parent and path != folder:
            return OutputError(f"cannot write {path}: {reason}")
    if error.errno in _DISK_FULL or any(path.is_relative_to(folder) for path in names):
        return OutputError(f"cannot write {output}: {reason}")
    cause = f"{names[-1]}: " if names else ""
    return VitExportError(f"{output} was not written: {cause}{reason}")


def publish(files: Sequence[Path], folder: Path) -> None:
    """Move finished files into a folder, all or none; the last one is the artifact itself.

    Each name that had a file has one at every moment, even when the process is killed. The
    staging folder of the files also keeps the replaced ones until all is done.
    """
    moved: list[tuple[Path, Path | None]] = []  # each target, and the file that was there
    try:
        for file in files:
            target = folder / file.name
            backup = file.with_name(file.name + ".replaced") if os.path.lexists(target) else None
            if backup is not None:
                _keep(target, backup)
            moved.append((target, backup))
            os.replace(file, target)
    except BaseException:  # an interrupt too: restore every file
        for target, backup in moved:
            if backup is not None:
                os.replace(backup, target)
            else:
                target.unlink(missing_ok=True)
        raise


def _keep(file: Path, backup: Path) -> None:
    """Give a file a second name; copy it on a disk without hard links."""
    try:
        os.link(file, backup, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(file, backup, follow_symlinks=False)


def pack_artifact(
    source: OnnxFile, path: Path, manifest: Manifest, *, external_data: bool = False
) -> OnnxFile:
    """Write an artifact with a manifest, and the outputs that it names, into a staging folder."""
    outputs = [spec.name for spec in manifest.outputs]
    metadata = manifest.metadata()
    return pack(source, path, metadata=metadata, outputs=outputs, external_data=external_data)


def publish_artifact(
    packed: OnnxFile, others: Collection[Path], manifest: Manifest, path: Path
) -> tuple[Path, ...]:
    """Write the final manifest, move the artifact and `others` to their place; return all paths."""
    stamp(packed.path, manifest.metadata())
    made = [*packed.external_files, *others, packed.path]
    written = tuple(path.parent / file.name for file in made)
    weights = path.with_name(path.name + ".data")
    stale = weights not in written and _holds_weights(path, weights)
    publish(made, path.parent)
    if stale:
        weights.unlink(missing_ok=True)
    return written


def _holds_weights(path: Path, weights: Path) -> bool:
    """Whether a file is the external data of an earlier artifact at this path."""
    try:
        file = OnnxFile.read(path)
        return file.manifest is not None and weights in file.external_files
    except ArtifactError:
        return False
