"""What a shared library asks for, against libraries that really load."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from vit_export.host.elf import needed


def package(name: str) -> Path:
    """Folder of an installed package."""
    (folder,) = importlib.util.find_spec(name).submodule_search_locations
    return Path(folder)


@pytest.fixture(scope="module")
def multiarray() -> Path:
    """The largest library of numpy, which is linked with the BLAS that lies beside the package."""
    (path,) = (package("numpy") / "_core").glob("_multiarray_umath*.so")
    return path


def test_a_library_names_the_one_it_is_linked_with(multiarray):
    """By the name of a file that is there."""
    beside = {path.name for path in (package("numpy").parent / "numpy.libs").iterdir()}
    names = needed(multiarray)
    assert set(names) & beside
    assert "libc.so.6" in names


def test_a_library_without_cuda_asks_for_none():
    """The wheel of ONNX Runtime that the tests run with."""
    (library,) = (package("onnxruntime") / "capi").glob("onnxruntime_pybind11_state*.so")
    names = needed(library)
    assert "libstdc++.so.6" in names
    assert [name for name in names if name.startswith(("libcu", "libnv"))] == []


@pytest.mark.parametrize(
    "content", [b"", b"MZ", b"\x7fELF\x01\x01" + b"\0" * 90, b"\x7fELF\x02\x01"]
)
def test_another_kind_of_file_asks_for_nothing(tmp_path, content):
    """Windows, 32 bits, and nothing at all."""
    path = tmp_path / "library"
    path.write_bytes(content)
    assert needed(path) == ()


def test_a_library_that_is_cut_off_asks_for_nothing_or_for_the_same(multiarray, tmp_path):
    """Never an exception, never half a name."""
    whole = multiarray.read_bytes()
    names = needed(multiarray)
    path = tmp_path / "cut.so"
    found = set()
    for share in range(1, 100, 9):
        path.write_bytes(whole[: len(whole) * share // 100])
        found.add(needed(path))
    assert found <= {(), names}
    assert () in found
