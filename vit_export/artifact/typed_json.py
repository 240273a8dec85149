"""Typed JSON: the text of a manifest or sidecar to its class, and back."""

import json
import re
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from vit_export.errors import ArtifactError, ConfigError

SCHEMA_VERSION = 1  # the newest of manifests and sidecars that this release reads

R = TypeVar("R", bound="Record")


class Record(Struct, frozen=True):
    """Base of the classes that are stored."""

    def replace(self: R, **changes: Any) -> R:
        """Return a copy with some fields changed."""
        # `msgspec.structs.replace` of older versions does not call `__post_init__`
        return type(self)(
            **{name: getattr(self, name) for name in self.__struct_fields__} | changes
        )

    def to_json(self, *, indent: int | None = None) -> str:
        """Return JSON text: compact on one line, or indented for people."""
        separators = (",", ":") if indent is None else None
        plain = msgspec.to_builtins(self, str_keys=True, enc_hook=plain_number)
        return json.dumps(plain, indent=indent, separators=separators, ensure_ascii=False)


def decode(text: str, kind: type[R], *, what: str, hint: str) -> R:
    """Check JSON text against a class, and convert it; `what` is the start of messages.

    Unknown fields are ignored at every depth: a later release of the same schema may add some.
    `Infinity` and `NaN` are accepted, as Python writes them.
    """
    try:
        data = json.loads(text)
        if isinstance(data, dict):
            _check_schema(data, what)
        return msgspec.convert(data, kind)
    except (ConfigError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{what} is damaged: {_described(error)}", hint=hint) from error


def _check_schema(data: dict[str, Any], what: str) -> None:
    """Raise ArtifactError where a newer release wrote the data, or the manifest inside it."""
    if "schema_version" not in data:
        raise msgspec.ValidationError("it has no schema_version")
    manifest = data.get("manifest")
    inner = manifest if isinstance(manifest, dict) else data
    for part in (data, inner):
        version = part.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            tools = inner.get("toolchain")
            writer = tools.get("vit-export") if isinstance(tools, dict) else None
            needed = f"'vit-export>={writer}'" if isinstance(writer, str) else "vit-export"
            raise ArtifactError(
                f"{what} has schema version {version}, and this vit-export reads versions up to "
                f"{SCHEMA_VERSION}",
                hint=f"pip install -U {needed}",
            )


def _described(error: Exception) -> str:
    """Return what is wrong, the field's path first: `preprocess.size[0]: expected ...`."""
    if isinstance(error, ConfigError):  # of a class that checks its values
        return error.message
    if not isinstance(error, msgspec.ValidationError):
        return f"it is no JSON ({error})"
    message, _, path = str(error).partition(" - at `$")
    path = re.sub(r"^\.|`$", "", path)
    message = message[:1].lower() + message[1:]
    return f"{path}: {message}" if path else message


def plain_number(value: Any) -> Any:
    """Convert a numpy number, for msgspec's `enc_hook`."""
    if isinstance(value, float):
        return float(value)
    raise NotImplementedError(f"JSON has no {type(value).__name__}")
