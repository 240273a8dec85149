"""How a training went."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_export.cli.report.gates import loaded

if TYPE_CHECKING:
    from vit_export.training.run import FinetuneResult


def trained(result: FinetuneResult, *, no_curve: str = "") -> str:
    """Return the accuracy of a training run, its files, and the next command.

    Args:
        result: The run.
        no_curve: Why the learning curve could not be drawn.
    """
    training = result.training
    best, files = training.best, training.files
    early = ", stopped early" if training.stopped_early else ""
    lines = [
        *([loaded(result.report), ""] if result.report is not None else []),
        f"{files.checkpoint}  best epoch {best.epoch} of {len(training.history)}{early}: "
        f"{100 * best.val_accuracy:.2f} % of {training.num_validation} validation images correct, "
        f"loss {best.val_loss:.4f} ({training.num_train} trained on)",
        f"{no_curve or f'curve: {files.curve}'}   history: {files.history}",
        *([f"not images, ignored: {_some(result.ignored)}"] if result.ignored else []),
        *([f"predictions: {result.predictions}"] if result.predictions else []),
        f"next: vit-export onnx --weights {shlex.quote(str(files.checkpoint))}",
    ]
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
