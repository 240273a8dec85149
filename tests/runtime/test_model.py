"""Images of every kind give the same labelled predictions; what cannot be classified says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vit_export.artifact.manifest import Preprocess
from vit_export.errors import ArtifactError, GateError, ImageError, InputError, UsageError
from vit_export.images.prepare import prepare_batch
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime import load
from vit_export.runtime.model import MAX_BATCH, Model, Prediction, softmax


@pytest.fixture(scope="module")
def vit(tiny_export) -> Model:
    """The tiny export, ready to classify."""
    return load(tiny_export.path, provider="cpu")


def close(a: list[Prediction], b: list[Prediction]) -> bool:
    """The same classes with the same scores."""
    return [(p.index, p.label) for p in a] == [(p.index, p.label) for p in b] and np.allclose(
        [p.score for p in a], [p.score for p in b], atol=1e-6
    )


def test_a_photograph_gets_the_classes_that_torch_gives_it(vit, make_model, photographs):
    """Softmax probabilities, the likeliest first."""
    top = vit.classify(photographs[0], top=3)
    with torch.no_grad():
        x = torch.from_numpy(prepare_batch([photographs[0]], vit.preprocess))
        expected = make_model()(x).double().softmax(-1)[0]
    assert [p.index for p in top] == expected.argsort(descending=True)[:3].tolist()
    scores = expected.sort(descending=True).values[:3].tolist()
    assert [p.score for p in top] == pytest.approx(scores, abs=1e-5)
    assert [p.label for p in top] == [f"name {p.index}" for p in top]
    assert vit.provider == "cpu"


def test_all_classes_add_up_to_one(vit, photographs):
    """More than there are gives all."""
    everything = vit.classify(photographs[0], top=99)
    assert len(everything) == 10
    assert sum(p.score for p in everything) == pytest.approx(1)


def test_every_kind_of_image_gives_the_same(vit, photographs):
    """A path, its text, a Pillow image, an array."""
    expected = vit.classify(photographs[0])
    with Image.open(photographs[0]) as image:
        image.load()
    for source in (str(photographs[0]), image, np.asarray(image)):
        assert close(vit.classify(source), expected)


def test_many_images_give_a_list_each(vit, photographs):
    """Of a list, a tuple, or an array of a batch; one image in a list is still many."""
    single = [vit.classify(photo, top=2) for photo in photographs]
    for many in (photographs, tuple(photographs)):
        found = vit.classify(many, top=2)
        assert all(close(a, b) for a, b in zip(found, single, strict=True))
    batch = np.stack([np.asarray(Image.open(photo)) for photo in photographs])
    assert all(close(a, b) for a, b in zip(vit.classify(batch, top=2), single, strict=True))
    assert len(vit.classify([photographs[0]])) == 1


def test_more_images_than_one_batch_holds_are_all_classified_in_order(vit):
    """A folder of photographs."""
    images = [np.full((32, 32, 3), i, np.uint8) for i in range(2 * MAX_BATCH + 3)]
    found = vit.classify(images, top=10)
    assert len(found) == 2 * MAX_BATCH + 3
    for i in (0, MAX_BATCH - 1, MAX_BATCH, len(images) - 1):
        assert close(found[i], vit.classify(images[i], top=10))


def test_a_fixed_batch_is_filled_up_and_cut(make_model, tmp_path, photographs, vit):
    """Five images on a file for three at a time."""
    result = export(make_model(), tmp_path / "three.onnx", settings=ExportSettings(batch=3))
    three = load(result.path, provider="cpu")
    images = [*photographs, *photographs, photographs[0]]
    found = three.classify(images)
    assert len(found) == 5
    expected = vit.classify(images)
    for a, b in zip(found, expected, strict=True):
        assert [p.index for p in a] == [p.index for p in b]
        assert [p.score for p in a] == pytest.approx([p.score for p in b], abs=1e-5)
    assert found[0][0].label == f"class {found[0][0].index}"  # exported without labels
    assert three.logits(photographs).shape == (2, 10)


def test_a_model_that_computes_no_number_names_no_class(vit, photographs):
    """NaN or infinity in any image's logits is an error that names the image and the provider."""
    broken = Model(vit.runner)
    images = [photographs[0]] * MAX_BATCH + [photographs[1]]
    for number in (np.nan, np.inf):

        def run(pixel_values, number=number):
            logits = vit.run(pixel_values)
            logits[:, 2] = np.where(len(logits) == 1, number, logits[:, 2])
            return logits

        broken.run = run  # type: ignore[method-assign]
        with pytest.raises(GateError, match=rf"on 'cpu'.*image {MAX_BATCH} .*flower\.jpg"):
            broken.classify(images)
    assert len(broken.classify([photographs[0]] * MAX_BATCH)) == MAX_BATCH


def test_labels_and_preparation_can_be_given(tiny_export, photographs):
    """They win over those of the manifest; a wrong number of them is refused."""
    other = Preprocess(size=(32, 32), mean=(0.1,) * 3, std=(0.9,) * 3)
    vit = load(tiny_export.path, preprocess=other, labels=[f"new {i}" for i in range(10)])
    assert all(p.label == f"new {p.index}" for p in vit.classify(photographs[0], top=10))
    with pytest.raises(UsageError, match="2 labels for a model of 10 classes"):
        load(tiny_export.path, labels=["zero", "one"]).classify(photographs[0])
    np.testing.assert_allclose(
        vit.logits([photographs[0]]), vit.run(prepare_batch([photographs[0]], other)), atol=1e-5
    )


@pytest.mark.parametrize("top", [0, -1])
def test_fewer_than_one_class_is_refused(vit, photographs, top):
    """A slip of the sign would give all but one."""
    with pytest.raises(InputError, match=f"top={top}: must be at least 1"):
        vit.classify(photographs[0], top=top)


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 32, 32, 3), np.uint8)])
def test_no_images_are_refused(vit, nothing):
    """An empty folder is seldom meant."""
    with pytest.raises(ImageError, match="no images were given"):
        vit.classify(nothing)


def test_an_image_that_cannot_be_read_is_named_with_its_place(vit, photographs, tmp_path):
    """Among many."""
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"image 1 of the batch.*broken\.jpg"):
        vit.classify([photographs[0], tmp_path / "broken.jpg"])
    with pytest.raises(ImageError, match=r"image 40 of the batch"):
        vit.classify([*[photographs[0]] * 40, tmp_path / "broken.jpg"])


def test_a_file_without_a_manifest_asks_how_to_prepare_images(tiny_export, tmp_path, photographs):
    """Guessing would be silent; with an answer it classifies."""
    model = onnx.load(tiny_export.path)
    del model.metadata_props[:]
    path = tmp_path / "plain.onnx"
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match=r"plain\.onnx: .*--mean, --std.*preprocess=Preproc"):
        load(path).classify(photographs[0])
    found = load(path, preprocess=Preprocess(size=(32, 32))).classify(photographs[0])
    assert [p.index for p in found] == [
        p.index for p in load(tiny_export.path).classify(photographs[0])
    ]
    assert load(path).run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)


def test_features_are_no_classes(make_model, tmp_path, photographs):
    """A file that gives them runs, but does not classify."""
    result = export(
        make_model(), tmp_path / "features.onnx", settings=ExportSettings(outputs=["features"])
    )
    vit = load(result.path)
    with pytest.raises(ArtifactError, match=r"features\.onnx: its first output .features.*--out"):
        vit.classify(photographs[0])
    assert vit.run(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 32)


def test_pixels_that_were_not_normalised_are_refused(vit):
    """0 to 255 as float; random noise of a normal distribution is fine."""
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"values from 0 to 255.*normalise it"):
        vit.run(np.linspace(0, 255, 3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32))
    assert vit.run(generator.standard_normal((4, 3, 32, 32)).astype(np.float32)).shape == (4, 10)


def test_tensors_and_mappings_run_like_arrays(vit):
    """By the input's name, where a model has several."""
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = vit.run(x)
    np.testing.assert_array_equal(vit.run({"pixel_values": x}), expected)
    np.testing.assert_array_equal(vit.run(torch.from_numpy(x)), expected)
    with pytest.raises(InputError, match="did you mean 'pixel_values'"):
        vit.run({"pixel_valeus": x})


def test_softmax_does_not_overflow():
    """Large logits, and equal ones."""
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [3.0, 3.0]])), [[1, 0], [0.5, 0.5]])


def test_equal_scores_keep_the_order_of_the_classes(vit):
    """So that predictions are the same everywhere."""
    flat = Model(vit.runner)
    flat.logits = lambda images: np.zeros((len(list(images)), 10))  # type: ignore[method-assign]
    assert [p.index for p in flat.classify("x", top=4)] == [0, 1, 2, 3]
