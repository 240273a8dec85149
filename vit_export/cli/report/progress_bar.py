"""Progress of long work: a bar on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class TerminalProgress:
    """A `vit_export.progress.Progress` that shows stages, by default on standard error."""

    def __init__(self, stream: TextIO | None = None) -> None:
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
        """Show the current stage; see `vit_export.progress.Progress`."""
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

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self.live:
            self._bar.stop()
