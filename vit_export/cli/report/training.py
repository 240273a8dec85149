"""How a training went."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from vit_export.cli.report.gates import loaded

if TYPE_CHECKING:
    from vit_export.training.run import Trained


def trained(result: Trained) -> str:
    """How a training went, and what to do next."""
    best, files = result.result.best, result.result.files
    early = ", stopped early" if result.result.stopped_early else ""
    lines = [
        *([loaded(result.report), ""] if result.report is not None else []),
        f"{files.checkpoint}  best epoch {best.epoch} of {len(result.result.history)}{early}: "
        f"{100 * best.val_accuracy:.2f} % of {len(result.result.held_out)} held-out images right, "
        f"loss {best.val_loss:.4f} ({result.result.num_train} trained on)",
        f"curve: {files.curve}   history: {files.history}",
        *([f"predictions: {result.predictions}"] if result.predictions else []),
        f"next: vit-export onnx --weights {shlex.quote(str(files.checkpoint))}",
    ]
    return "\n".join(lines)
