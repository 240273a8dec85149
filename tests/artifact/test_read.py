"""Manifest and image preparation of any artifact."""

from __future__ import annotations

import msgspec
import onnx
import pytest

from vit_export.artifact.engine_sidecar import sidecar_path
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.read import read_manifest, read_preprocess
from vit_export.errors import ConfigError, UsageError


@pytest.fixture
def foreign(tiny_export, tmp_path):
    """Writes the tiny export without its manifest, its input's shape changed."""

    def write(shape: list[int | str | None]) -> str:
        model = onnx.load(tiny_export.path)
        del model.metadata_props[:]
        new = onnx.helper.make_tensor_value_info("pixel_values", 1, shape)
        model.graph.input[0].CopyFrom(new)
        path = tmp_path / "foreign.onnx"
        path.write_bytes(model.SerializeToString())
        return str(path)

    return write


def test_the_size_is_that_of_the_input(foreign):
    changes = {"mean": "0.1,0.2,0.3", "std": "1,2,3"}
    found = read_preprocess(foreign(["n", 3, 32, 48]), changes)
    assert found == Preprocess(size=(32, 48), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert (found.crop_pct, found.interpolation) == (0.9, "bicubic")
    whole = read_preprocess(foreign(["n", 3, 32, 48]), {**changes, "crop_pct": "1"})
    assert whole == msgspec.structs.replace(found, crop_pct=1.0)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({}, "mean and std cannot be guessed\nhint: give --mean and --std"),
     ({"crop_pct": "1"}, "mean and std cannot"),
     ({"mean": "0,0,0"}, "prepared, and std cannot be guessed\nhint: give --std as"),
     ({"std": "1,1,1"}, "prepared, and mean cannot be guessed\nhint: give --mean as")],
)  # fmt: skip
def test_mean_and_std_are_not_guessed(foreign, changes, missing):
    with pytest.raises(UsageError, match=rf"foreign\.onnx: .*{missing}"):
        read_preprocess(foreign(["n", 3, 32, 32]), changes)


@pytest.mark.parametrize(("channels", "color"), [(1, "L"), (4, "")])
def test_the_channels_are_those_of_the_input(foreign, channels, color):
    stats = ",".join(["0.5"] * channels)
    found = read_preprocess(foreign([1, channels, 30, 31]), {"mean": stats, "std": stats})
    assert found.color == color
    assert found.size == (30, 31)
    assert len(found.mean) == len(found.std) == channels


def test_settings_of_the_manifest_stay_unless_changed(tiny_export):
    known = tiny_export.manifest.preprocess
    assert read_preprocess(tiny_export.path, {}) == known
    changed = read_preprocess(tiny_export.path, {"interpolation": "bilinear"})
    assert changed == msgspec.structs.replace(known, interpolation="bilinear")


def test_the_settings_of_an_engine_are_those_of_its_sidecar(tmp_path, make_sidecar):
    engine, sidecar = tmp_path / "x.engine", make_sidecar()
    known = Preprocess(size=(32, 32), crop_pct=1.0)
    sidecar.replace(manifest=sidecar.manifest.replace(preprocess=known)).write(sidecar_path(engine))
    assert read_manifest(engine).preprocess == known
    assert read_preprocess(engine, {"crop_pct": "0.5"}) == known.replace({"crop_pct": 0.5})


@pytest.mark.parametrize(
    "shape", [["n", 3], ["n", 3, "h", "w"], ["n", "c", 32, 32], [1, 3, None, 32]]
)
def test_inputs_that_are_no_images_of_a_fixed_size_are_refused(foreign, shape):
    with pytest.raises(UsageError, match=r"foreign\.onnx: takes \(.*expected images"):
        read_preprocess(foreign(shape), {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"mean": "0.5,0.5"}, "mean has 2 values"), ({"std": "0,0,0"}, "must be positive"),
     ({"interpolation": "bicubik"}, "bicubic"), ({"crop_pct": "2"}, "must lie in")],
)  # fmt: skip
def test_values_that_cannot_work_are_refused(foreign, changes, reason):
    given = {"mean": "0,0,0", "std": "1,1,1", **changes}
    with pytest.raises(ConfigError, match=reason):
        read_preprocess(foreign(["n", 3, 32, 32]), given)
