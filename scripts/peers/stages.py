"""Stages of a run that an interrupted one has finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Stages:
    """The rows of each stage, in a file each, with the settings that they were measured with."""

    folder: Path
    settings: dict[str, Any]
    resume: bool

    def rows(self, name: str, measure: Callable[[], Rows]) -> Rows:
        """Return the rows of a stage: measured now, or by an earlier call with these settings."""
        file = self.folder / f"{name}.json"
        if self.resume and file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["settings"] == self.settings:
                return kept["rows"]
        file.unlink(missing_ok=True)
        rows = measure()
        text = json.dumps({"settings": self.settings, "rows": rows})
        file.write_text(text, encoding="utf-8")
        return json.loads(text)["rows"]
