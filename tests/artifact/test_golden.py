"""The golden file is small, the same on every run, and refused when it is damaged."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_export.artifact.golden import (
    BLOCK_SAMPLES,
    Blocks,
    Golden,
    block_indices,
    golden_path,
    pictures,
)
from vit_export.errors import ArtifactError

SIZES = [(32, 32, 3), (28, 28, 1), (48, 96, 3), (5, 7, 4), (1, 1, 1), (224, 224, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_the_same_every_time_and_unlike_each_other(size):
    first = pictures(*size)
    assert first.shape == (4, *size)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, pictures(*size))
    if size[0] * size[1] > 1:
        assert len({picture.tobytes() for picture in first}) == 4


def test_pictures_are_the_same_on_every_machine():
    noise = pictures(32, 32, 3)[2]
    digest = hashlib.sha256(noise.tobytes()).hexdigest()
    assert digest.startswith("ddbef8888e236819")


def test_pictures_hold_smooth_structures_edges_flat_areas_and_noise():
    views = pictures(64, 64, 3).astype(np.float64)
    steps = np.abs(np.diff(views, axis=2))
    waves, disc, noise, stripes = steps.max(axis=(1, 2, 3))
    assert 0 < waves < 80
    assert disc > 100
    assert noise > 200
    assert stripes > 100
    assert (steps[1] == 0).mean() > 0.9
    spread = views[2].std()
    assert 70 < spread < 78  # uniform bytes: 255 / sqrt(12)


def test_colours_differ_in_coloured_pictures():
    views = pictures(32, 32, 3)
    swapped = [not np.array_equal(view, view[..., ::-1]) for view in views]
    assert all(swapped)


def example(images: bool = True, blocks: bool = True) -> Golden:
    """A golden file's content, small."""
    generator = np.random.default_rng(0)
    return Golden(
        images=pictures(8, 8, 3) if images else None,
        inputs={} if images else {"x": np.ones((4, 3), np.float32), "ids": np.arange(4)},
        outputs={"logits": generator.standard_normal((4, 4)), "features": np.zeros((4, 2, 2))},
        e32={"logits": 1e-7, "features": 0.0},
        blocks=Blocks(
            names=("blocks.0", "blocks.1"),
            indices=np.stack([block_indices(50), block_indices(900)]),
            values=generator.standard_normal((2, 4, BLOCK_SAMPLES)),
            e32=np.array([1e-7, 2e-7]),
        )
        if blocks
        else None,
    )


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("blocks", [True, False])
def test_a_golden_file_comes_back_as_it_was(tmp_path, images, blocks):
    golden = example(images, blocks)
    path = tmp_path / "m.golden.npz"
    golden.write(path)
    back = Golden.read(str(path))
    assert back.samples == 4
    assert back.e32 == golden.e32
    for name in ("outputs", "inputs"):
        found, written = getattr(back, name), getattr(golden, name)
        assert set(found) == set(written)
        for key, array in written.items():
            np.testing.assert_array_equal(found[key], array)
            assert found[key].dtype == array.dtype
    assert (back.images is None) is not images
    if images:
        np.testing.assert_array_equal(back.images, golden.images)
    assert (back.blocks is None) is not blocks
    if blocks:
        assert back.blocks.names == golden.blocks.names
        for name in ("indices", "values", "e32"):
            np.testing.assert_array_equal(getattr(back.blocks, name), getattr(golden.blocks, name))


def test_the_same_content_gives_the_same_bytes(tmp_path):
    example().write(tmp_path / "a.npz")
    example().write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_arrays_are_stored_as_they_are(tmp_path):
    example().write(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        kinds = {entry.compress_type for entry in archive.infolist()}
        names = set(archive.namelist())
    assert kinds == {zipfile.ZIP_STORED}
    assert names == {
        "images.npy", "output.logits.npy", "output.features.npy", "e32.logits.npy",
        "e32.features.npy", "block.names.npy", "block.indices.npy", "block.values.npy",
        "block.e32.npy",
    }  # fmt: skip


def test_the_golden_file_of_an_export_is_small(tiny_export):
    golden = Golden.read(tiny_export.golden)
    assert tiny_export.golden.stat().st_size < 200_000
    assert golden.images.shape == (4, 32, 32, 3)
    assert golden.outputs["logits"].shape == (4, 10)
    assert golden.blocks.names == ("blocks.0", "blocks.1", "blocks.2")


def npz(**arrays: np.ndarray) -> bytes:
    """An archive of arrays."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    """A single array's file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


ONE = np.ones((1, 2))
DAMAGED = {
    "empty": b"",
    "text": b"not a zip archive",
    "one array": npy(ONE),
    "a pickled array": npy(np.array([object()])),
    "an empty archive": npz(),
    "arrays of another purpose": npz(weights=ONE),
    "no inputs": npz(**{"output.y": ONE, "e32.y": np.float64(0)}),
    "no outputs": npz(images=np.zeros((1, 2, 2, 3), np.uint8)),
    "no baseline": npz(**{"input.x": ONE, "output.y": ONE}),
    "half of its blocks": npz(
        **{"input.x": ONE, "output.y": ONE, "e32.y": np.float64(0), "block.names": np.array(["a"])}
    ),
    "objects in it": npz(**{"input.x": np.array([None]), "output.y": ONE}),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_file_that_is_no_golden_file_is_refused(tmp_path, what):
    path = tmp_path / "odd.golden.npz"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(ArtifactError, match=r"odd\.golden\.npz: not a golden file") as caught:
        Golden.read(path)
    assert "pickle" not in str(caught.value)
    assert "NAME.golden.npz" in caught.value.hint


WHOLE_ARRAYS = {
    "images": np.zeros((2, 4, 4, 3), np.uint8),
    "output.y": np.ones((2, 5)),
    "e32.y": np.float64(1e-7),
    "block.names": np.array(["a", "b", "c"]),
    "block.indices": np.zeros((3, 4), np.int64),
    "block.values": np.zeros((3, 2, 4)),
    "block.e32": np.zeros(3),
}
DISAGREEING = {
    "too few images": ({"images": np.zeros((1, 4, 4, 3), np.uint8)}, r"output.y is float.*\(1, "),
    "too few inputs": ({"input.x": np.zeros((3, 4))}, r"input.x is float.*\(2, "),
    "outputs of other lengths": ({"output.z": np.ones((1, 5)), "e32.z": np.float64(0)}, "output.z"),
    "no samples": (
        {"images": np.zeros((0, 4, 4, 3), np.uint8), "output.y": np.ones((0, 5)),
         "block.values": np.zeros((3, 0, 4))}, "images is uint8"),
    "an output without rows": ({"output.y": np.float64(1)}, "output.y is float64"),
    "images of another dtype": ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "images is float"),
    "images without channels": ({"images": np.zeros((2, 4, 4), np.uint8)}, "images is uint8"),
    "words as output": ({"output.y": np.array(["a", "b"])}, "output.y is <U1"),
    "no finite baseline": ({"e32.y": np.float64("inf")}, "e32.y holds inf"),
    "a negative baseline": ({"e32.y": np.float64(-1)}, "e32.y holds -1"),
    "several baselines": ({"e32.y": np.zeros(2)}, "e32.y is float64"),
    "one name": ({"block.names": np.array("a")}, "block.names"),
    "numbers as names": ({"block.names": np.arange(3)}, "block.names"),
    "too many names": ({"block.names": np.array(list("abcd"))}, "block.indices"),
    "negative indices": ({"block.indices": np.full((3, 4), -1)}, "block.indices"),
    "absurd indices": ({"block.indices": np.full((3, 4), 2**40)}, "block.indices"),
    "indices that are none": ({"block.indices": np.zeros((3, 4))}, "block.indices"),
    "flat indices": ({"block.indices": np.zeros(3, np.int64)}, "block.indices"),
    "no indices": ({"block.indices": np.zeros((3, 0), np.int64)}, "block.indices"),
    "fewer values than indices": ({"block.values": np.zeros((3, 2, 3))}, "block.values"),
    "values of other samples": ({"block.values": np.zeros((3, 8, 4))}, "block.values"),
    "rounded values": ({"block.values": np.zeros((3, 2, 4), np.float32)}, "block.values"),
    "too few block baselines": ({"block.e32": np.zeros(2)}, "block.e32"),
    "block baselines not finite": ({"block.e32": np.full(3, np.nan)}, "block.e32"),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "4x4."])
@pytest.mark.parametrize("what", DISAGREEING)
def test_arrays_that_do_not_fit_together_are_refused_by_name(tmp_path, what, prefix):
    path = tmp_path / "odd.golden.npz"
    changes, reason = DISAGREEING[what]
    other = {prefix + name: array for name, array in (WHOLE_ARRAYS | changes).items()}
    path.write_bytes(npz(**(WHOLE_ARRAYS | other)))
    with pytest.raises(ArtifactError, match=rf"odd\.golden\.npz: .*{reason}.*\nhint: export"):
        Golden.read(path)


def test_pictures_of_another_size_than_their_name_are_refused(tmp_path):
    path = tmp_path / "odd.golden.npz"
    for size in ("4x4", "8x8"):
        other = {f"{size}.{name}": array for name, array in WHOLE_ARRAYS.items()}
        path.write_bytes(npz(**WHOLE_ARRAYS, **other))
        if size == "4x4":
            assert [other.size for other in Golden.read(path).others] == ["4x4"]
        else:
            with pytest.raises(ArtifactError, match=r"8x8\.images are pictures of 4x4"):
                Golden.read(path)


def test_a_golden_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.npz: no such golden file"):
        Golden.read(tmp_path / "none.npz")
    with pytest.raises(ArtifactError, match="is a folder, expected a golden file"):
        Golden.read(tmp_path)


def test_a_golden_file_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "cut.npz"
    example().write(path)
    data = path.read_bytes()
    for end in np.linspace(0, len(data) - 1, 60).astype(int):
        path.write_bytes(data[:end])
        with pytest.raises(ArtifactError):
            Golden.read(path)


WHOLE = npz(**{"input.x": ONE, "output.y": ONE, "e32.y": np.float64(0)})


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=400
)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_golden_file_with_a_changed_byte_is_read_or_refused(tmp_path, at, byte):
    data = bytearray(WHOLE)
    data[at % len(data)] = byte
    path = tmp_path / "changed.npz"
    path.write_bytes(data)
    with contextlib.suppress(ArtifactError):
        Golden.read(path)


@pytest.mark.parametrize("row_size", [1, 2, 255, 256, 257, 100_000])
def test_kept_elements_are_within_the_row_and_include_both_ends(row_size):
    kept = block_indices(row_size)
    assert kept.shape == (BLOCK_SAMPLES,)
    assert kept.dtype == np.int64
    assert (kept[0], kept[-1]) == (0, row_size - 1)
    assert (np.diff(kept) >= 0).all()
    assert len(set(kept)) == min(row_size, BLOCK_SAMPLES)


@pytest.mark.parametrize(
    ("artifact", "golden"),
    [("a/vit.onnx", "a/vit.golden.npz"), ("vit.fp16.onnx", "vit.fp16.golden.npz"),
     ("vit.engine", "vit.golden.npz")],
)  # fmt: skip
def test_the_golden_file_lies_beside_its_artifact(artifact, golden):
    assert golden_path(artifact) == Path(golden)
