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


def check_only_adds(text: str, earlier: str) -> None:
    """Check that declarations still fit programs that were built with an earlier version.

    Only structs that begin with `struct_size` may grow, with the table of functions and enums:
    the others lie side by side in arrays, or in the memory of an older caller.
    """
    by_head = dict(map(fields, declarations(text)))
    for declaration in earlier.splitlines():
        head, had = fields(declaration)
        assert head in by_head, f"removed: {head}"
        grows = " enum " in head or "vit_export_api " in head or had[:1] == ["size_t struct_size"]
        now = by_head[head]
        assert (now[: len(had)] if grows else now) == had, f"changed: {head}"


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
    for earlier in range(1, version() + 1):
        check_only_adds(
            HEADER.read_text(encoding="utf-8"), snapshot(earlier).read_text(encoding="utf-8")
        )


@pytest.mark.parametrize(
    ("old", "new", "fits"),
    [
        ("size_t provider_option_count;", "int32_t more;", True),
        ("size_t measurement_count;", "double more;", True),
        ("void (*release_selftest)(vit_export_selftest_result* result);", "int more;", True),
        ("size_t stride;", "int32_t more;", False),
        ("size_t rank;", "int32_t more;", False),
        ("const void* data;", "int32_t more;", False),
        ("const char* label;", "int32_t more;", False),
    ],
)
def test_only_structs_that_tell_their_size_may_grow(old: str, new: str, fits: bool) -> None:
    text = HEADER.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    grown, earlier = text.replace(old, f"{old} {new}"), "\n".join(declarations(text))
    if fits:
        check_only_adds(grown, earlier)
    else:
        with pytest.raises(AssertionError, match="changed: "):
            check_only_adds(grown, earlier)


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


def test_only_one_symbol_is_exported(release: Path) -> None:
    """Weak ones of the standard library would replace those of the program, or be replaced."""
    library = release / "library" / "libvit_export.so"
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--extern-only", library],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert [line.split()[1:] for line in listing.splitlines()] == [["T", "vit_export_get_api"]]
