"""Progress and result of a training run as text."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from vit_export.cli.report.exports import checkpoint_text, next_lines
from vit_export.cli.report.progress_bar import TerminalProgress

if TYPE_CHECKING:  # they import torch
    from vit_export.training.loop import EpochProgress
    from vit_export.training.run import FinetuneResult


class EpochLines:
    """Show a bar during each epoch of training, and a line after it."""

    def __init__(self, progress: TerminalProgress) -> None:
        self._progress = progress

    def __call__(self, now: EpochProgress) -> None:
        """Show a training step, or the end of an epoch."""
        epoch = f"epoch {now.epoch}/{now.epochs}"
        if now.finished is not None:
            done = now.finished
            self._progress.line(
                f"{epoch}  loss {done.train_loss:.4f}  val loss {done.val_loss:.4f}  "
                f"val accuracy {100 * done.val_accuracy:.2f} %  {done.time_s:.1f} s"
            )
        elif self._progress.live:
            running = f"loss {now.loss:.4f}  accuracy {100 * now.accuracy:.1f} %"
            self._progress(f"{epoch}  {running}", now.step, now.steps)


def training_text(result: FinetuneResult, *, no_curve: str = "") -> str:
    """Return the accuracy of a training run, its files or why it has no curve, and what is next."""
    best, files, names = result.best, result.files, result.ignored
    early = ", stopped early" if result.stopped_early else ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    lines = [
        *([checkpoint_text(result.report), ""] if result.report is not None else []),
        f"{files.checkpoint}  best epoch {best.epoch} of {len(result.history)}{early}: "
        f"{100 * best.val_accuracy:.2f} % of {result.num_validation} validation images correct, "
        f"loss {best.val_loss:.4f} ({result.num_train} trained on)",
        f"{no_curve or f'curve: {files.curve}'}   history: {files.history}",
        *([f"not images, ignored: {', '.join(names[:3])}{more}"] if names else []),
        *([f"predictions: {result.predictions}"] if result.predictions else []),
        *next_lines([f"onnx --weights {shlex.quote(str(files.checkpoint))}"]),
    ]
    return "\n".join(lines)
