"""Last lines of a command that wrote an artifact: the result, and the next commands to try."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.vocabulary import LOGITS
from vit_export.cli.report.gates import VERDICT, error_text
from vit_export.cli.report.tables import size


def closing_line(
    path: Path, size_bytes: int, seconds: float, stage: Stage, precision: str, remark: str = ""
) -> str:
    """Return the path, size, time, verdict and measured error of an artifact in one line.

    Args:
        path: The artifact.
        size_bytes: Its size, external data included.
        seconds: How long the command took.
        stage: The last stage of its certificate.
        precision: Its precision.
        remark: More about its size, e.g. the share of the fp32 artifact's.
    """
    return "  ".join((
        str(path),
        f"{size(size_bytes)}{f' ({remark})' if remark else ''}",
        f"{seconds:.1f} s",
        VERDICT[stage.passed],
        error_text(stage, precision),
    ))  # fmt: skip


def next_lines(commands: Sequence[str]) -> list[str]:
    """Return one line per `vit-export` command to try next."""
    return [
        f"{'next:' if i == 0 else '     '} vit-export {text}" for i, text in enumerate(commands)
    ]


def artifact_commands(path: Path, manifest: Manifest) -> list[str]:
    """Return the commands to try on an artifact: `predict` where it has classes, `validate`."""
    quoted = shlex.quote(str(path))
    commands = [f"validate {quoted}    (on any machine: needs numpy and onnxruntime only)"]
    if any(s.name == LOGITS and len(s.shape) == 2 for s in manifest.outputs):
        commands.insert(0, f"predict {quoted} PHOTO.jpg")
    return commands
