"""The shared libraries that a Linux library asks for, read off its file without loading it.

Structures and numbers: System V ABI, "ELF-64 Object File Format", version 1.5.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
PROGRAM_LOAD, PROGRAM_DYNAMIC = 1, 2
DYNAMIC_END, DYNAMIC_NEEDED, DYNAMIC_STRINGS = 0, 1, 5
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<QQ")


def needed(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names in the NEEDED entries of a shared library, e.g. `("libnvinfer.so.10", ...)`.

    Returns:
        The names in the file's order; nothing for a file that is no 64-bit ELF library.
    """
    with Path(path).open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return tuple(_names(content))
            except (struct.error, ValueError):  # cut off
                return ()


def _names(content: mmap.mmap) -> list[str]:
    _, _, _, _, first, _, _, _, size, count, *_ = _HEADER.unpack_from(content)
    programs = [_PROGRAM.unpack_from(content, first + i * size) for i in range(count)]
    segments = [(address, offset, length) for kind, _, offset, address, _, length, *_ in programs
                if kind == PROGRAM_LOAD]  # fmt: skip
    entries: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length, *_ in programs:
        if kind == PROGRAM_DYNAMIC:
            places = range(offset, offset + length, _ENTRY.size)
            entries = [_ENTRY.unpack_from(content, place) for place in places]
    end = next((i for i, (tag, _) in enumerate(entries) if tag == DYNAMIC_END), len(entries))
    tables = [value for tag, value in entries[:end] if tag == DYNAMIC_STRINGS]
    if not tables:
        return []
    strings = _offset(tables[0], segments)
    names = []
    for tag, value in entries[:end]:
        if tag == DYNAMIC_NEEDED:
            begin = strings + value
            end_of_name = content.find(b"\0", begin)
            if end_of_name < 0:
                raise ValueError("a name without an end")
            names.append(content[begin:end_of_name].decode())
    return names


def _offset(address: int, segments: list[tuple[int, int, int]]) -> int:
    """Where an address of the loaded library lies in its file."""
    for start, offset, length in segments:
        if start <= address < start + length:
            return offset + address - start
    raise ValueError(f"no segment holds the address {address:#x}")
