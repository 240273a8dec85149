"""Results as text for people and as JSON for machines."""

from vit_export.cli.report.files import described, golden, predictions, variants
from vit_export.cli.report.gates import certificate, comparison, exported, loaded
from vit_export.cli.report.jsonline import to_json
from vit_export.cli.report.tables import size, table
from vit_export.cli.report.terminal import EpochLines, TerminalProgress
from vit_export.cli.report.training import trained

__all__ = [
    "EpochLines",
    "TerminalProgress",
    "certificate",
    "comparison",
    "described",
    "exported",
    "golden",
    "loaded",
    "predictions",
    "size",
    "table",
    "to_json",
    "trained",
    "variants",
]
