"""Long work on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from vit_export.training.loop import EpochProgress


class TerminalProgress:
    """A bar on a terminal, a line per stage elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.live = self._stream.isatty()
        self._stage = ""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Show where the work is; see `vit_export.progress.Progress`."""
        if self.live:
            bar = f" [{'#' * (20 * done // total):<20}] {done}/{total}" if total else " ..."
            self._stream.write(f"\r\033[K{stage}{bar}")
        elif stage != self._stage:
            self._stream.write(f"{stage}\n")
        self._stage = stage
        self._stream.flush()

    def line(self, text: str) -> None:
        """Leave a line that stays."""
        self.close()
        self._stream.write(text + "\n")
        self._stream.flush()
        self._stage = ""

    def close(self) -> None:
        """Leave a clean line behind."""
        if self.live and self._stage:
            self._stream.write("\r\033[K")
            self._stream.flush()


class EpochLines:
    """Training on a terminal: a bar per epoch, then a line that stays."""

    def __init__(self, progress: TerminalProgress) -> None:
        self._progress = progress

    def __call__(self, now: EpochProgress) -> None:
        """Show a step, or the end of an epoch."""
        if now.finished is None:
            if not self._progress.live:
                return
            self._progress(
                f"epoch {now.epoch}/{now.epochs}  loss {now.loss:.4f}  "
                f"accuracy {100 * now.accuracy:.1f} %",
                now.step,
                now.steps,
            )
            return
        done = now.finished
        self._progress.line(
            f"epoch {done.epoch}/{now.epochs}  loss {done.train_loss:.4f}  "
            f"val loss {done.val_loss:.4f}  val accuracy {100 * done.val_accuracy:.2f} %  "
            f"{done.time_s:.1f} s"
        )
