"""Images are prepared in threads: in order, lazily, and without threads that stay."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import ImageError
from vit_export.images import read_ahead as module
from vit_export.images.prepare import resize_and_crop
from vit_export.images.read_ahead import read_ahead

SIZE = Preprocess(size=(32, 32))


@pytest.fixture
def files(tmp_path) -> list:
    """Forty photographs of noise, of sizes that take different times, and one broken file."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(40):
        pixels = generator.integers(0, 256, (32 + 40 * (i % 5), 40, 3), np.uint8)
        paths.append(tmp_path / f"{i:02}.png")
        Image.fromarray(pixels).save(paths[-1])
    paths[7].write_bytes(b"no image")
    return paths


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Whatever a test does."""
    yield
    assert threads() == []


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("read-ahead")]


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_images_keep_their_order_and_errors_their_place(files, ahead):
    """The pixels are those of a preparation one after another."""
    found = list(read_ahead(files, SIZE, ahead))
    assert [name for name, _ in found] == [f" ({path})" for path in files]
    for (_, item), path in zip(found, files, strict=True):
        if path == files[7]:
            assert isinstance(item, ImageError)
        else:
            np.testing.assert_array_equal(item, resize_and_crop(path, SIZE))


def test_threads_prepare_files_while_the_caller_computes(files, monkeypatch):
    """All of one batch ahead, before the second image is asked for."""
    done = threading.Semaphore(0)

    def notify(image, preprocess):
        assert threading.current_thread() is not threading.main_thread()
        pixels = resize_and_crop(image, preprocess)
        done.release()
        return pixels

    monkeypatch.setattr(module, "resize_and_crop", notify)
    images = read_ahead(files[10:30], SIZE, 8)
    next(images)
    assert all(done.acquire(timeout=30) for _ in range(8))
    assert not done.acquire(timeout=0.1)  # and no more
    images.close()


def test_a_generator_is_pulled_lazily(files):
    """At most `ahead` files before the one that is used, and in the caller's thread."""
    pulled = []

    def generate():
        for path in files:
            assert threading.current_thread() is threading.main_thread()
            pulled.append(path)
            yield path

    images = read_ahead(generate(), SIZE, 4)
    assert pulled == []
    for used in range(1, 20):
        next(images)
        assert len(pulled) <= used + 4
    images.close()
    assert len(pulled) < len(files)


@pytest.mark.parametrize("images", [lambda f: f[0], lambda f: f[:1], lambda f: iter(f[:1])])
def test_a_single_image_starts_no_thread(files, images, monkeypatch):
    """It is alone, in a list or in a generator."""
    monkeypatch.setattr(module.ThreadPoolExecutor, "submit", None)
    ((name, pixels),) = read_ahead(images(files), SIZE, 32)
    assert name == f" ({files[0]})"
    np.testing.assert_array_equal(pixels, resize_and_crop(files[0], SIZE))


def test_no_images_are_none():
    """The caller says so."""
    assert list(read_ahead([], SIZE, 32)) == []


def test_a_frame_buffer_that_a_generator_fills_again_is_read_in_time():
    """As those of a camera or of a video."""

    def reused():
        frame = np.zeros((48, 48, 3), np.uint8)
        for i in range(20):
            frame[:] = i
            yield frame

    assert [int(pixels[0, 0, 0]) for _, pixels in read_ahead(reused(), SIZE, 8)] == [*range(20)]


def test_a_file_that_a_generator_closes_is_read_in_time(files):
    """Open files, and Pillow images that were not loaded yet."""

    def opened():
        for path in files[:5]:
            with path.open("rb") as stream:
                yield stream
            with Image.open(path) as image:
                yield image

    found = [pixels for _, pixels in read_ahead(opened(), SIZE, 8)]
    for i, path in enumerate(files[:5]):
        for pixels in found[2 * i : 2 * i + 2]:
            np.testing.assert_array_equal(pixels, resize_and_crop(path, SIZE))


def test_one_pillow_image_many_times_is_no_race(files):
    """It is loaded at its first use."""
    with Image.open(files[4]) as image:
        found = [pixels for _, pixels in read_ahead([image] * 30, SIZE, 16)]
    for pixels in found:
        np.testing.assert_array_equal(pixels, resize_and_crop(files[4], SIZE))


@pytest.mark.parametrize("position", [0, 1, 5])
def test_an_error_of_the_generator_comes_after_the_images_before_it(files, position):
    """As without threads."""

    def generate():
        yield from files[:position]
        raise KeyError("mine")

    images = read_ahead(generate(), SIZE, 32)
    for _ in range(position):
        next(images)
    with pytest.raises(KeyError, match="mine"):
        next(images)
    assert list(images) == []


def test_an_unexpected_error_in_a_thread_reaches_the_caller(files, monkeypatch):
    """Such as a mistake in this package."""

    def fail(image, preprocess):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "resize_and_crop", fail)
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(files, SIZE, 4))


def test_an_iterator_that_is_dropped_leaves_no_thread(files):
    """Closed or forgotten; images that wait are not prepared any more."""
    for _ in range(3):
        images = read_ahead(files, SIZE, 32)
        next(images)
        assert threads()
        del images
        assert threads() == []


def test_callers_in_several_threads_each_get_their_images(files):
    """In a new process, in which all of them import Pillow at once."""
    program = f"""
from concurrent.futures import ThreadPoolExecutor
from vit_export.artifact.preprocess import Preprocess
from vit_export.images.read_ahead import read_ahead
files = {[str(path) for path in files[10:30]]!r}
def work(_):
    return [int(p.sum()) for _, p in read_ahead(files, Preprocess(size=(32, 32)), 8)]
with ThreadPoolExecutor(8) as pool:
    sums = list(pool.map(work, range(8)))
assert all(each == sums[0] for each in sums), sums
print(sum(sums[0]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = sum(int(resize_and_crop(path, SIZE).sum()) for path in files[10:30])
    assert int(done.stdout) == expected
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: len(list(read_ahead(files, SIZE, 8))), range(4)))
    assert results == [40] * 4
