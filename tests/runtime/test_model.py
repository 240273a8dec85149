"""`Model`: predictions and features of every kind of image, and the errors of those that fail."""

from __future__ import annotations

import io
import shutil
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import (
    ArtifactError,
    DataError,
    GateError,
    ImageError,
    InputError,
    UsageError,
)
from vit_export.gate.scores import sigmoid, softmax
from vit_export.images.prepare import prepare_batch
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime import feed, load
from vit_export.runtime.feed import MAX_BATCH, largest_batch
from vit_export.runtime.model import Model
from vit_export.runtime.prediction import Prediction

EDGE = Path(__file__).parents[1] / "edge" / "data"


@pytest.fixture(scope="module")
def vit(tiny_export) -> Model:
    """The tiny export on the CPU."""
    return load(tiny_export.path, provider="cpu")


@pytest.fixture(autouse=True)
def machine_of_16_cpus(monkeypatch):
    """Batches on the CPU are as large as elsewhere."""
    monkeypatch.setattr(feed, "usable_cpus", lambda: 16)


def close(a: list[Prediction], b: list[Prediction]) -> bool:
    """Whether two lists name the same classes with the same scores."""
    return [(p.index, p.label) for p in a] == [(p.index, p.label) for p in b] and np.allclose(
        [p.score for p in a], [p.score for p in b], atol=1e-6
    )


def test_a_photograph_gets_the_classes_that_torch_computes(vit, make_model, photographs):
    """Softmax probabilities, best first; they sum to one."""
    top = vit.classify(photographs[0], top=3)
    with torch.no_grad():
        x = torch.from_numpy(prepare_batch([photographs[0]], vit.preprocess))
        expected = make_model()(x).double().softmax(-1)[0]
    assert [p.index for p in top] == expected.argsort(descending=True)[:3].tolist()
    scores = expected.sort(descending=True).values[:3].tolist()
    assert [p.score for p in top] == pytest.approx(scores, abs=1e-5)
    assert [p.label for p in top] == [f"name {p.index}" for p in top]
    every_class = vit.classify(photographs[0], top=99)
    assert len(every_class) == 10
    assert sum(p.score for p in every_class) == pytest.approx(1)


def test_every_kind_of_image_gives_the_same_predictions(vit, photographs):
    """A path, a string, bytes, an open file, a Pillow image, an array."""
    expected = vit.classify(photographs[0])
    content = photographs[0].read_bytes()
    with Image.open(photographs[0]) as image, photographs[0].open("rb") as stream:
        sources = [str(photographs[0]), content, bytearray(content), io.BytesIO(content), stream,
                   image, np.asarray(image)]  # fmt: skip
        for source in sources:
            assert close(vit.classify(source), expected)


def test_many_images_give_one_list_each(vit, photographs, tmp_path):
    """A list, a tuple, a generator, an array (B, H, W, C), a folder, a pattern."""
    expected = [vit.classify(photo, top=2) for photo in photographs]
    for photo in photographs:
        shutil.copy(photo, tmp_path)
    batch = np.stack([np.asarray(Image.open(photo)) for photo in photographs])
    folder = str(tmp_path)
    many = [photographs, tuple(photographs), iter(photographs), batch, tmp_path, folder, [folder],
            f"{folder}/*.jpg"]  # fmt: skip
    for images in many:
        predictions = vit.classify(images, top=2)
        assert all(close(a, b) for a, b in zip(predictions, expected, strict=True))
    assert len(vit.classify([photographs[0]])) == 1


def test_more_images_than_one_batch_keep_their_order(vit):
    """Each gives what it gives alone."""
    images = [np.full((32, 32, 3), i, np.uint8) for i in range(2 * MAX_BATCH + 3)]
    predictions = vit.classify(images, top=10)
    assert len(predictions) == 2 * MAX_BATCH + 3
    for i in (0, MAX_BATCH - 1, MAX_BATCH, len(images) - 1):
        assert close(predictions[i], vit.classify(images[i], top=10))


@pytest.mark.parametrize(("cpus", "size"), [(1, 2), (2, 4), (16, MAX_BATCH), (64, MAX_BATCH)])
def test_a_batch_on_the_cpu_grows_with_the_cpus(vit, monkeypatch, cpus, size):
    """A GPU takes the largest."""
    monkeypatch.setattr(feed, "usable_cpus", lambda: cpus)
    assert (largest_batch("cpu"), largest_batch("cuda")) == (size, MAX_BATCH)
    batches = []
    recorded = Changed(vit.runner, lambda logits: batches.append(len(logits)) or logits)
    Model(recorded).classify([np.zeros((32, 32, 3), np.uint8)] * (size + 1))
    assert batches == [size, 1]


def test_images_are_read_one_batch_ahead(vit):
    """Memory stays flat over a generator of large images."""
    made = 0

    def generate() -> Iterator[np.ndarray]:
        nonlocal made
        for _ in range(4 * MAX_BATCH):
            made += 1
            yield np.zeros((32, 32, 3), np.uint8)

    results = vit.classify_each(generate())
    next(results)
    assert made == MAX_BATCH
    vit.classify(np.zeros((32, 32, 3), np.uint8))  # whatever is allocated once is there
    tracemalloc.start()
    try:
        for _ in vit.classify_each(np.zeros((1024, 1024, 3), np.uint8) for _ in range(40)):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 1024 * 1024 * 3


def test_methods_that_end_early_leave_no_thread(vit, photographs, tmp_path):
    """An error, an iterator that is dropped, and results that are all there."""

    def threads():
        return [each for each in threading.enumerate() if each.name.startswith("read-ahead")]

    images = [*photographs, tmp_path / "none.png", *[photographs[0]] * 40]
    with pytest.raises(ImageError, match="image 2: ") as caught:
        vit.classify(images)
    assert threads() == []
    with pytest.raises(ImageError):
        vit.embed(images)
    assert threads() == []
    del caught
    results = vit.classify_each(images)
    next(results)
    assert threads()
    results.close()
    assert threads() == []
    assert len([*vit.classify_each(images)]) == len(images)
    assert threads() == []


def test_threads_may_share_a_model(vit, photographs):
    """Each gets the predictions of its own images."""
    batches = [[photographs[i % 2]] * (3 + i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(vit.classify, batches))
    for predictions, images in zip(found, batches, strict=True):
        expected = vit.classify(images[0])
        assert len(predictions) == len(images)
        assert all(close(each, expected) for each in predictions)


def test_a_fixed_batch_is_filled_up(exported, photographs, vit):
    """Five images on a file for batches of three; it has no labels."""
    three = load(exported(settings=ExportSettings(batch=3)).path, provider="cpu")
    images = [*photographs, *photographs, photographs[0]]
    predictions = three.classify(images)
    for a, b in zip(predictions, vit.classify(images), strict=True):
        assert [p.index for p in a] == [p.index for p in b]
        assert [p.score for p in a] == pytest.approx([p.score for p in b], abs=1e-5)
    assert predictions[0][0].label == f"class {predictions[0][0].index}"
    np.testing.assert_allclose(three.embed(photographs), vit.embed(photographs), atol=1e-5)


class Changed:
    """A runner whose logits a function changes."""

    def __init__(self, runner, change) -> None:
        self.runner, self.change = runner, change

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def run(self, feeds, *, preprocess=None):
        return {"logits": self.change(self.runner.run(feeds, preprocess=preprocess)["logits"])}


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_image_with_infinite_logits_is_an_error_that_names_it(vit, photographs, number):
    """Also in the second batch."""

    def spoil_single_rows(logits):
        return np.where(len(logits) == 1, number, logits)

    broken = Model(Changed(vit.runner, spoil_single_rows))
    images = [photographs[0]] * MAX_BATCH + [photographs[1]]
    with pytest.raises(GateError, match=rf"on 'cpu'.*image {MAX_BATCH} .*flower\.jpg"):
        broken.classify(images)
    assert len(broken.classify([photographs[0]] * MAX_BATCH)) == MAX_BATCH


@pytest.mark.parametrize(
    ("profile", "sizes"),
    [((1, 4, 8), [8] * 4 + [3]), ((2, 4, 64), [MAX_BATCH, 3]), ((40, 40, 50), [40])],
)
def test_images_are_run_in_batches_that_the_runner_takes(vit, profile, sizes):
    """Cut to the largest batch of its profile, and filled up to the smallest."""
    batches = []
    recorded = Changed(vit.runner, lambda logits: batches.append(len(logits)) or logits)
    recorded.profile = profile
    images = [np.full((32, 32, 3), i, np.uint8) for i in range(MAX_BATCH + 3)]
    predictions = Model(recorded).classify(images)
    assert batches == sizes
    for a, b in zip(predictions, vit.classify(images), strict=True):
        assert close(a, b)


def test_labels_and_preprocess_arguments_replace_those_of_the_manifest(tiny_export, photographs):
    """A wrong number of labels is refused."""
    other = Preprocess(size=(32, 32), mean=(0.1,) * 3, std=(0.9,) * 3)
    vit = load(tiny_export.path, preprocess=other, labels=[f"new {i}" for i in range(10)])
    assert all(p.label == f"new {p.index}" for p in vit.classify(photographs[0], top=10))
    assert load(tiny_export.path, labels=dict(enumerate(vit.labels))).labels == vit.labels
    with pytest.raises(UsageError, match="2 labels for a model of 10 classes"):
        load(tiny_export.path, labels=["zero", "one"])
    with pytest.raises(UsageError, match=r"^preprocess=\{\}: expected a Preprocess"):
        load(tiny_export.path, preprocess={})
    logits = vit.run(prepare_batch([photographs[0]], other))[0]
    best = vit.classify(photographs[0], top=10)
    assert [p.index for p in best] == np.argsort(-logits, kind="stable").tolist()
    assert [p.score for p in best] == pytest.approx(np.sort(softmax(logits))[::-1], abs=1e-5)


@pytest.mark.parametrize("top", [0, -1, "3", 2.5, True])
def test_top_is_a_whole_number_from_one(vit, photographs, top):
    """-1 would give all classes but one."""
    with pytest.raises(InputError, match=f"top={top!r}: expected a whole number"):
        vit.classify(photographs[0], top=top)


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 32, 32, 3), np.uint8), iter(())])
def test_no_images_are_an_error(vit, nothing):
    """In every method that takes images."""
    for method in (vit.classify, vit.embed):
        with pytest.raises(ImageError, match="no images were given"):
            method(nothing)


def test_a_folder_without_images_is_an_error(vit, tmp_path):
    """A pattern without matches too."""
    for images in (tmp_path, f"{tmp_path}/*.jpg", [tmp_path]):
        with pytest.raises(DataError, match="no image"):
            vit.classify(images)


def test_an_unreadable_image_is_named(vit, photographs, tmp_path):
    """By its place among many, and without one where it is alone."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"^[^\n]*broken\.jpg: ") as alone:
        vit.classify(broken)
    assert not str(alone.value).startswith("image ")
    with pytest.raises(ImageError, match=r"^image 1: .*broken\.jpg"):
        vit.classify([photographs[0], broken])
    with pytest.raises(ImageError, match=r"^image 40: .*broken\.jpg"):
        vit.embed([*[photographs[0]] * 40, broken])


def test_classify_each_goes_on_after_an_unreadable_image(vit, photographs, tmp_path):
    """Its error stands in its place."""
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [tmp_path / "broken.jpg", photographs[0], tmp_path / "none.png", photographs[1]]
    results = list(vit.classify_each(images, top=2))
    assert [isinstance(result, ImageError) for result in results] == [True, False, True, False]
    expected = vit.classify(photographs, top=2)
    assert close(results[1], expected[0])
    assert close(results[3], expected[1])
    assert "none.png: no such image" in str(results[2])


def test_a_file_without_a_manifest_needs_preprocess(tiny_export, tmp_path, photographs):
    """With it, it classifies; tensors run without it."""
    model = onnx.load(tiny_export.path)
    del model.metadata_props[:]
    path = tmp_path / "plain.onnx"
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match=r"plain\.onnx: .*\nhint: give --mean, --std.*Preproc"):
        load(path).classify(photographs[0])
    predictions = load(path, preprocess=Preprocess(size=(32, 32))).classify(photographs[0])
    assert [p.index for p in predictions] == [
        p.index for p in load(tiny_export.path).classify(photographs[0])
    ]
    assert load(path).run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)


def test_a_model_without_logits_does_not_classify(tiny_export, tmp_path, photographs, vit):
    """It runs, and it embeds."""
    content = onnx.load(tiny_export.path)
    features = onnx.helper.make_tensor_value_info("features", 1, ["batch_size", 32])
    content.graph.output[0].CopyFrom(features)
    onnx.save(content, tmp_path / "tiny.onnx")
    model = load(tmp_path / "tiny.onnx")
    with pytest.raises(
        ArtifactError, match=r"tiny\.onnx: its first output .features.*\nhint: export it with --out"
    ):
        model.classify(photographs[0])
    assert model.run(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 32)
    np.testing.assert_allclose(model.embed(photographs), vit.embed(photographs), atol=1e-5)


def test_embed_computes_the_features_of_torch(vit, make_model, photographs):
    """float32 (B, D), also where the file's only output is logits; rows of length 1 on request."""
    features = vit.embed(photographs)
    assert (features.shape, features.dtype) == ((2, 32), np.float32)
    with torch.no_grad():
        x = torch.from_numpy(prepare_batch(photographs, vit.preprocess))
        expected = make_model().forward_all(x)["features"].numpy()
    np.testing.assert_allclose(features, expected, atol=2e-5)
    unit = vit.embed(photographs, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        unit, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-6
    )
    assert vit.embed(photographs[0]).shape == (1, 32)
    assert list(vit(x.numpy())) == ["logits"]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-static"])
def test_artifacts_of_every_precision_embed(photographs, precision):
    """In float32, and nearly as the fp32 artifact."""
    with load(EDGE / "edge.onnx") as wide, load(EDGE / f"edge.{precision}.onnx") as narrow:
        reference = wide.embed(photographs, normalize=True)
        features = narrow.embed(photographs, normalize=True)
    assert features.dtype == np.float32
    assert (np.sum(features * reference, axis=1) > 0.99).all()


def test_an_artifact_without_features_does_not_embed(vit, photographs, monkeypatch):
    """As an engine that gives logits only."""
    monkeypatch.setattr(type(vit.runner), "has_tensor", lambda self, name: False)
    with pytest.raises(ArtifactError, match=r"tiny\.onnx: has no tensor 'features'.*\nhint: exp"):
        Model(vit.runner).embed(photographs)


def test_pixels_that_were_not_normalised_are_refused(vit):
    """0 to 255 as float; standard normal noise is accepted."""
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"values from 0 to 255.*\nhint: normalise it"):
        vit.run(np.linspace(0, 255, 3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32))
    assert vit.run(generator.standard_normal((4, 3, 32, 32)).astype(np.float32)).shape == (4, 10)
    for number in (np.nan, np.inf):
        with pytest.raises(InputError, match="'pixel_values' holds NaN or infinite values"):
            vit.run(np.full((1, 3, 32, 32), number, np.float32))


def test_tensors_and_dicts_run_like_arrays(vit):
    """A call gives every output by name, `run` the first."""
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = vit.run(x)
    np.testing.assert_array_equal(vit(x)["logits"], expected)
    np.testing.assert_array_equal(vit.run({"pixel_values": x}), expected)
    np.testing.assert_array_equal(vit(torch.from_numpy(x))["logits"], expected)
    with pytest.raises(InputError, match="did you mean 'pixel_values'"):
        vit.run({"pixel_valeus": x})


def test_a_closed_model_is_refused(tiny_export, photographs):
    """`with` closes it; its representation says so."""
    with load(tiny_export.path, provider="cpu") as model:
        assert repr(model) == (
            "<Model tiny.onnx on 'cpu': pixel_values: float32 (batch_size, 3, 32, 32) -> "
            "logits: float32 (batch_size, 10)>"
        )
        assert (model.provider, dict(model.rejected)) == ("cpu", {})
        model.embed(photographs[0])
    assert "closed" in repr(model)
    for use in (model.classify, model.embed):
        with pytest.raises(UsageError, match=r"tiny\.onnx: the model is closed"):
            use(photographs[0])
    with pytest.raises(UsageError, match="is closed"):
        model(np.zeros((1, 3, 32, 32), np.float32))


def test_the_activation_of_the_manifest_makes_the_scores(vit, photographs):
    """Sigmoid: each label by itself; none: the model's own output."""
    logits = vit.run(prepare_batch([photographs[0]], vit.preprocess))[0].astype(np.float64)
    order = np.argsort(-logits)
    for activation, expected in (("sigmoid", 1 / (1 + np.exp(-logits))), ("none", logits)):
        model = Model(vit.runner)
        model.activation = activation
        predictions = model.classify(photographs[0], top=10)
        assert [p.index for p in predictions] == order.tolist()
        assert [p.score for p in predictions] == pytest.approx(expected[order].tolist())


def test_every_label_that_a_sigmoid_finds_is_listed(vit, photographs):
    """Those of 0.5 and more, beside the `top` best; softmax gives `top`."""
    logits = np.array([-3.0, 2.0, -1.0, 0.0, 1.0, *[-4.0] * 5], np.float32)
    model = Model(Changed(vit.runner, lambda found: np.tile(logits, (len(found), 1))))
    model.activation = "sigmoid"
    for top, classes in ((1, [1, 4, 3]), (3, [1, 4, 3]), (4, [1, 4, 3, 2])):
        assert [p.index for p in model.classify(photographs[0], top=top)] == classes
    model.activation = "softmax"
    assert [p.index for p in model.classify(photographs[0], top=1)] == [1]


def test_activations_do_not_overflow():
    """Large logits, and equal ones."""
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [3.0, 3.0]])), [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


def test_equal_scores_keep_the_order_of_the_classes(vit, photographs):
    """So that predictions are the same on every machine."""
    flat = Model(Changed(vit.runner, np.zeros_like))
    assert [p.index for p in flat.classify(photographs[0], top=4)] == [0, 1, 2, 3]
