"""The C++ example decodes JPEG and PNG to the pixels that Python decodes; faults are messages."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from image_kinds import chunk, png, write_all
from PIL import Image

from vit_export.deploy.package_cpp import CMAKE_FOLDER
from vit_export.errors import ImageError
from vit_export.images.decode import decode

pytestmark = pytest.mark.cpp

EXAMPLE = CMAKE_FOLDER / "examples/vit-classify"
STRICT = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion",
          "-Werror"]  # fmt: skip
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder as a program, with sanitizers that end it at the first fault."""
    program = tmp_path_factory.mktemp("decoder") / "decode_images"
    sources = [EXAMPLE / name for name in ("image.cpp", "jpeg.cpp", "png.cpp", "orientation.cpp")]
    driver = Path(__file__).with_name("decode_images.cpp")
    subprocess.run(
        ["g++", *STRICT, *SANITIZERS, "-I", EXAMPLE, *sources, driver, "-ljpeg", "-lpng",
         "-o", program],
        check=True,
    )  # fmt: skip
    return program


def decoded(decoder: Path, paths: list[Path]) -> list[Pixels | str]:
    """Decode files in C++: the pixels of each, or its error."""
    lines = "".join(f"{path}\n" for path in paths)
    done = subprocess.run([decoder], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: list[Pixels | str] = []
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        if line.startswith("Error: "):
            results.append(line.removeprefix("Error: "))
        else:
            width, height = map(int, line.split())
            results.append(np.fromfile(f"{path}.rgb", np.uint8).reshape(height, width, 3))
    return results


def test_pixels_of_every_kind_of_file_are_those_of_python(
    decoder: Path, tmp_path: Path, photographs: list[Path]
) -> None:
    """Depths, palettes, transparency, interlacing, CMYK, subsampling, all orientations."""
    paths = write_all(tmp_path, Image.open(photographs[0]))
    assert len(paths) > 200
    different = []
    for path, pixels in zip(paths, decoded(decoder, paths), strict=True):
        if not np.array_equal(pixels, np.asarray(decode(path, "RGB"))):
            different.append((path.name, pixels if isinstance(pixels, str) else pixels.shape))
    assert different == []


def test_damaged_files_give_an_error_or_the_pixels_of_python(
    decoder: Path, tmp_path: Path, photographs: list[Path]
) -> None:
    """Cut anywhere, or with wrong bytes; where both decode, both see the same pixels."""
    small = Image.open(photographs[0]).crop((100, 50, 164, 98))
    originals = {
        "baseline.jpg": {"quality": 75},
        "progressive.jpg": {"quality": 75, "progressive": True},
        "restart.jpg": {"restart_marker_blocks": 3},
        "rgb.png": {},
    }
    choose = random.Random(0)
    damaged = []
    for name, options in originals.items():
        small.save(tmp_path / name, **options)
        content = (tmp_path / name).read_bytes()
        for number in range(150):
            part = bytearray(content)
            if number % 3 == 0:
                del part[choose.randrange(len(part)) :]
            for _ in range(0 if number % 3 == 0 else choose.choice((1, 2, 8))):
                part[choose.randrange(choose.choice((100, len(part))))] = choose.randrange(256)
            damaged.append(tmp_path / f"{number}-{name}")
            damaged[-1].write_bytes(part)
    refused = 0
    for path, pixels in zip(damaged, decoded(decoder, damaged), strict=True):
        if isinstance(pixels, str):
            assert pixels.startswith(f"{path}: "), pixels
            refused += 1
            continue
        try:
            expected = np.asarray(decode(path, "RGB"))
        except ImageError:
            continue  # Pillow checks more of what is not pixels
        np.testing.assert_array_equal(pixels, expected, err_msg=path.name)
    assert 200 < refused < 600


def test_other_files_are_refused_with_pythons_message(decoder: Path, tmp_path: Path) -> None:
    """Missing, empty, a folder, another format, more pixels than allowed, a false size."""
    grey = np.zeros((1, 1, 1), dtype=np.uint8)
    contents = {
        "empty.png": b"",
        "text.jpg": b"not an image",
        "bomb.png": png(grey, 8, 0, size=(20_000, 20_000)),
        "claims.png": png(grey, 8, 0, size=(13_000, 13_000)),
        "no-width.png": png(grey, 8, 0, size=(0, 1)),
        "no-palette.png": png(grey, 8, 3),
        "header.png": b"\x89PNG\r\n\x1a\n",
        "header.jpg": b"\xff\xd8\xff",
        "no-pixels.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    names = [*contents, "missing.png", "folder.png"]
    found = decoded(decoder, [tmp_path / name for name in names])
    messages = {name: str(m).removeprefix(f"{tmp_path / name}: ")
                for name, m in zip(names, found, strict=True)}  # fmt: skip
    for name in ("empty.png", "bomb.png", "missing.png", "folder.png"):
        with pytest.raises(ImageError) as error:
            decode(tmp_path / name, "RGB")
        assert messages[name] == error.value.message.removeprefix(f"{tmp_path / name}: ")
    expected = {
        "text.jpg": "is not an image in a supported format; expected one of JPEG, PNG",
        "claims.png": "cannot be decoded to 'RGB' (Not enough image data)",
        "header.png": "cannot be decoded to 'RGB' (the file is truncated)",
        "header.jpg": "cannot be decoded to 'RGB' (the file is truncated)",
        "no-palette.png": "cannot be decoded to 'RGB' (IDAT: Missing PLTE before IDAT)",
    }
    assert {name: messages[name] for name in expected} == expected
    for name in ("no-width.png", "no-pixels.png"):
        assert "cannot be decoded" in messages[name], messages[name]
