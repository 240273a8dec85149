"""Results for machines: one line of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vit_export.artifact.typed_json import plain_number


def to_json(value: Any) -> str:
    """Return one line of JSON; numbers that are not finite become null, as JSON has none."""
    encoded = msgspec.json.encode(value, enc_hook=_plain)
    return msgspec.json.format(encoded, indent=0).decode()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else plain_number(value)
