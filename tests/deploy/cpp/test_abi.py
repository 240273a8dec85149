"""The binary interface: what a version of vit_export.h declares never changes.

`abi/version-N.txt` holds the declarations of version N, without comments. A release that changes
them raises VIT_EXPORT_API_VERSION, and adds a file: UPDATE_ABI=1 writes it for a new version.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpp
HERE = Path(__file__).parent
HEADER = HERE.parents[2] / "vit_export/deploy/cpp/include/vit_export/vit_export.h"


def declarations(text: str) -> list[str]:
    """Return every declaration of the header, one line each: structs, enums and functions."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    text = re.sub(r"^\s*#.*?(?<!\\)$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'extern "C" \{', "", text)
    found = re.findall(r"(?:typedef (?:struct|enum) \w+ \{.*?\} \w+|[^;{}]+);", text, re.DOTALL)
    lines = (" ".join(declaration.split()) for declaration in found)
    return [re.sub(r" ?(\*) ?", r"\1 ", line) for line in lines]


def version() -> int:
    """Return VIT_EXPORT_API_VERSION."""
    match = re.search(r"VIT_EXPORT_API_VERSION (\d+)", HEADER.read_text(encoding="utf-8"))
    assert match
    return int(match[1])


def fields(declaration: str) -> tuple[str, list[str]]:
    """Return what a declaration begins with, and its fields."""
    head, _, body = declaration.partition("{")
    separator = "," if " enum " in head else ";"
    return head, [
        field.strip() for field in body.rpartition("}")[0].split(separator) if field.strip()
    ]


def snapshot(number: int) -> Path:
    return HERE / "abi" / f"version-{number}.txt"


def test_a_version_of_the_interface_never_changes() -> None:
    now = declarations(HEADER.read_text(encoding="utf-8"))
    stored = snapshot(version())
    if os.environ.get("UPDATE_ABI") and not stored.exists():
        stored.write_text("\n".join(now) + "\n", encoding="utf-8")
    assert now == stored.read_text(encoding="utf-8").splitlines(), (
        "vit_export.h declares something else than its version: raise VIT_EXPORT_API_VERSION, and "
        "run the test with UPDATE_ABI=1"
    )


def test_a_later_version_only_adds() -> None:
    by_head = dict(map(fields, declarations(HEADER.read_text(encoding="utf-8"))))
    for earlier in range(1, version() + 1):
        for declaration in snapshot(earlier).read_text(encoding="utf-8").splitlines():
            head, had = fields(declaration)
            assert by_head[head][: len(had)] == had, f"version {version()} changes: {head}"


def test_the_check_notices_every_kind_of_change() -> None:
    text = HEADER.read_text(encoding="utf-8")
    now = declarations(text)
    for old, new in (
        ("int32_t device;", "int64_t device;"),
        ("VIT_EXPORT_USAGE_ERROR = 1", "VIT_EXPORT_USAGE_ERROR = 2"),
        ("  int32_t threads;", ""),
        ("uint32_t version);", "uint64_t version);"),
        ("double score;", "float score;"),
    ):
        assert re.sub(r"\s+", " ", text).count(" ".join(old.split())), old
        assert declarations(text.replace(old, new, 1)) != now, old
    assert declarations(text.replace("/* A model", "/* The model")) == now


def test_only_one_function_is_exported(release: Path) -> None:
    library = release / "library" / "libvit_export.so"
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--extern-only", library],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    functions = [line.split()[-1] for line in listing.splitlines() if " T " in line]
    assert functions == ["vit_export_get_api"]
