"""The gate of a graph that prepares images refuses every way to prepare them wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from preparation_graphs import preparation_model

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import LOGITS, PROBABILITIES, TOP_INDEX, TOP_SCORE
from vit_export.errors import ArtifactError
from vit_export.gate.preparation import gate_image, gate_sizes, measure_preparation
from vit_export.gate.scores import score_failures, softmax
from vit_export.images.prepare import before_preparation, prepare_batch, resize_and_crop
from vit_export.runtime.onnxruntime.runner import OrtRunner

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESS = Preprocess(size=(32, 32), mean=MEAN, std=STD)
Damage = Callable[[onnx.ModelProto], None]


def measure(path: Path, model: onnx.ModelProto, preprocess: Preprocess, resize: str = "op"):
    """Measure a model."""
    onnx.save(model, path)
    return measure_preparation(
        OrtRunner(path, provider="cpu"), preprocess, resize=resize, stage="preparation"
    )


def constants(model: onnx.ModelProto, value: float) -> list[onnx.TensorProto]:
    """The constants of a model that begin with a value."""
    return [
        tensor
        for tensor in model.graph.initializer
        if np.isclose(numpy_helper.to_array(tensor).flat[0], np.float32(value))
    ]


def replace(tensor: onnx.TensorProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of a constant."""
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))


def another_mean(model: onnx.ModelProto) -> None:
    """By a third of a level, which no comparison of levels would show."""
    (mean,) = constants(model, MEAN[0])
    replace(mean, lambda values: values + 0.3 / 255)


def swapped_means(model: onnx.ModelProto) -> None:
    """Those of BGR."""
    (mean,) = constants(model, MEAN[0])
    replace(mean, lambda values: values[::-1])


def another_std(model: onnx.ModelProto) -> None:
    (std,) = constants(model, STD[0])
    replace(std, lambda values: values * 1.001)


def swapped_channels(model: onnx.ModelProto) -> None:
    """BGR instead of RGB, with the means in the right place."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    for node in graph.node:
        node.input[:] = ["swapped" if name == "image" else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Gather", ["image", "bgr"], ["swapped"], axis=3))


def set_attribute(name: str, value: object) -> Damage:
    """Another attribute of the Resize nodes."""

    def damage(model: onnx.ModelProto) -> None:
        for node in (n for n in model.graph.node if n.op_type == "Resize"):
            (old,) = (a for a in node.attribute if a.name == name)
            node.attribute.remove(old)
            node.attribute.append(onnx.helper.make_attribute(name, value))

    return damage


def without_antialiasing(model: onnx.ModelProto) -> None:
    """As a runtime resizes that ignores it."""
    set_attribute("antialias", 0)(model)
    set_attribute("exclude_outside", 0)(model)


def shifted_crop(model: onnx.ModelProto) -> None:
    """One pixel too low."""
    halves = [n for n in model.graph.node if n.op_type == "Mod"]
    (add,) = (n for n in model.graph.node if n.op_type == "Add" and halves[0].output[0] in n.input)
    shift = numpy_helper.from_array(np.array([2, 0]), "shift")
    model.graph.initializer.append(shift)
    position = list(model.graph.node).index(add)
    model.graph.node.insert(
        position + 1, onnx.helper.make_node("Add", [add.output[0], "shift"], ["shifted"])
    )
    for node in list(model.graph.node)[position + 2 :]:
        node.input[:] = ["shifted" if name == add.output[0] else name for name in node.input]


def without_transpose_of_sides(model: onnx.ModelProto) -> None:
    """Columns always first, as Pillow 12 did."""
    (first,) = (n for n in model.graph.node if n.op_type == "Xor")
    model.graph.initializer.append(numpy_helper.from_array(np.array([False]), "never"))
    first.input[0] = "never"


DAMAGES = {
    "mean": another_mean,
    "means of BGR": swapped_means,
    "std": another_std,
    "channels": swapped_channels,
    "no antialiasing": without_antialiasing,
    "another cubic": set_attribute("cubic_coeff_a", -0.75),
    "bilinear": set_attribute("mode", "linear"),
    "pixels outside": set_attribute("exclude_outside", 0),
    "corners": set_attribute("coordinate_transformation_mode", "align_corners"),
    "crop": shifted_crop,
    "order of passes": without_transpose_of_sides,
}


@pytest.mark.parametrize("resize", ["op", "matmul"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_a_graph_that_prepares_as_pillow_passes(
    tmp_path: Path, resize: str, interpolation: str
) -> None:
    preprocess = PREPROCESS.replace({"interpolation": interpolation})
    model = preparation_model(preprocess, resize)
    stage = measure(tmp_path / "good.onnx", model, preprocess, resize)
    assert stage.passed, stage.reasons
    assert stage.samples == len(gate_sizes(preprocess)) == 40
    exact = resize == "matmul" or interpolation == "nearest"
    assert stage.max_abs == 0 if exact else stage.max_abs <= stage.tolerance
    assert ("none differs" in stage.notes[0]) == exact


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_preparation_is_refused(tmp_path: Path, damage: str) -> None:
    preprocess = PREPROCESS
    if damage == "no antialiasing":  # ONNX Runtime has no bicubic of uint8 without it
        preprocess = PREPROCESS.replace({"interpolation": "bilinear"})
    model = preparation_model(preprocess, "op")
    DAMAGES[damage](model)
    stage = measure(tmp_path / "bad.onnx", model, preprocess)
    assert stage.passed is False
    expected = "values are off" if damage in ("mean", "std") else "a pixel differs"
    assert expected in stage.reason


def test_a_graph_that_cannot_run_is_refused(tmp_path: Path) -> None:
    model = preparation_model(PREPROCESS, "op")
    set_attribute("antialias", 0)(model)
    assert "px fails: " in measure(tmp_path / "bad.onnx", model, PREPROCESS).reason


def test_a_graph_that_runs_one_image_only_is_refused(tmp_path: Path, monkeypatch) -> None:
    onnx.save(preparation_model(PREPROCESS, "op"), tmp_path / "one.onnx")
    runner = OrtRunner(tmp_path / "one.onnx", provider="cpu")
    run = runner.run

    def one_image(feeds):
        if len(feeds["image"]) > 1:
            raise ArtifactError("too many")
        return run(feeds)

    monkeypatch.setattr(runner, "run", one_image)
    stage = measure_preparation(runner, PREPROCESS, resize="op", stage="preparation")
    assert stage.reason == "a batch of 3 images fails: too many"


def test_preparation_for_another_model_is_refused(tmp_path: Path) -> None:
    model = preparation_model(PREPROCESS, "op")
    other = Preprocess(size=(24, 32), mean=MEAN, std=STD)
    assert "gives (3, 32, 32)" in measure(tmp_path / "other.onnx", model, other).reason


def test_the_sizes_are_of_all_kinds() -> None:
    sizes = gate_sizes(PREPROCESS)
    assert len(set(sizes)) >= 38
    assert {1, 2} <= {min(size) for size in sizes}
    assert (1, 1) in sizes
    assert min(h / w for h, w in sizes) < 0.1
    assert max(h / w for h, w in sizes) > 3
    assert sum(h < 35 and w < 35 for h, w in sizes) >= 10  # enlarged
    assert sum(h > 35 and w > 35 for h, w in sizes) >= 10  # reduced


def test_the_images_of_the_gate_are_the_same_everywhere() -> None:
    sums = [int(gate_image(number, 9, 14, 3).astype(int).sum()) for number in range(3)]
    assert sums == [51043, 56686, 71820]


@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_framed_images_are_prepared_to_the_pixels_inside(size: tuple[int, int], color: str) -> None:
    channels = 1 if color == "L" else 3
    preprocess = Preprocess(
        size=size, crop_pct=0.8, mean=(0.5,) * channels, std=(0.5,) * channels, color=color
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, channels), dtype=np.uint8)
    framed = before_preparation(pixels, preprocess)
    assert framed.shape[3] == 3
    for image, inside in zip(framed, pixels, strict=True):
        np.testing.assert_array_equal(resize_and_crop(image, preprocess), inside)
    assert prepare_batch(framed, preprocess).shape == (2, channels, *size)


def scores(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a graph with scores, with some changed."""
    logits = np.array([[1, 3, 2, 3], [0, -1, 5, 2]], np.float32)
    probabilities = softmax(logits.astype(np.float64)).astype(np.float32)
    index = np.array([[1, 3, 2], [2, 3, 0]])
    top = np.take_along_axis(probabilities, index, axis=1)
    outputs = {LOGITS: logits, PROBABILITIES: probabilities, TOP_INDEX: index, TOP_SCORE: top}
    return {**outputs, **changes}


def test_right_scores_pass() -> None:
    assert list(score_failures(scores(), "softmax")) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({PROBABILITIES: softmax(np.zeros((2, 4))).astype(np.float32)}, "off by"),
        ({TOP_INDEX: np.array([[3, 1, 2], [2, 3, 0]])}, "not the classes"),
        ({TOP_SCORE: np.full((2, 3), 0.5, np.float32)}, "not the largest"),
        ({PROBABILITIES: np.full((2, 4), np.nan, np.float32)}, "off by nan"),
    ],
)
def test_wrong_scores_are_named(changed: dict[str, np.ndarray], reason: str) -> None:
    assert reason in "; ".join(score_failures(scores(**changed), "softmax"))


def test_softmax_scores_of_a_sigmoid_model_are_refused() -> None:
    assert "off by" in "; ".join(score_failures(scores(), "sigmoid"))
