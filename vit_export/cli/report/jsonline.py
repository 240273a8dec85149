"""Results for machines: one line of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from vit_export.artifact.typed_json import plain_number


def to_json(value: Any) -> str:
    """Return one line of JSON; numbers that are not finite become null, as JSON has none.

    Where the name of a file has bytes that are not UTF-8, the line is ASCII with escapes.
    """
    try:
        encoded = msgspec.json.encode(value, enc_hook=_plain)
    except UnicodeEncodeError:  # a surrogate, as Python stores such a byte
        text = json.dumps(msgspec.to_builtins(value, enc_hook=_plain, str_keys=True))
        return json.dumps(json.loads(text, parse_constant=lambda _: None))
    return msgspec.json.format(encoded, indent=0).decode()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else plain_number(value)
