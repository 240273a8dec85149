"""The sidecar of an engine: what it keeps, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vit_export.artifact.engine_sidecar import (
    Sidecar,
    file_sha256,
    is_engine,
    relative_source,
    sidecar_path,
)
from vit_export.errors import ArtifactError

MakeSidecar = Callable[..., Sidecar]


def test_a_sidecar_comes_back_as_it_was_written(tmp_path: Path, make_sidecar: MakeSidecar) -> None:
    engine = tmp_path / "x.engine"
    make_sidecar().write(sidecar_path(engine))
    assert Sidecar.read(engine) == make_sidecar()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.engine.json"]


@pytest.mark.parametrize("name", ["x.engine", "x.plan", "x.trt"])
def test_an_engine_has_its_own_name_in_the_name_of_its_sidecar(name: str) -> None:
    assert is_engine(name)
    assert not is_engine(f"{name}.json")
    assert sidecar_path(name).name == f"{name}.json"


def test_an_engine_without_a_sidecar_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"x.engine.json is not beside it\nhint: .*vit-export engine"
    ):
        Sidecar.read(tmp_path / "x.engine")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema_version": 1}', "null", '{"schema_version": "new"}', "\0"],
)
def test_a_damaged_sidecar_is_one_error(tmp_path: Path, text: str) -> None:
    sidecar_path(tmp_path / "x.engine").write_text(text)
    with pytest.raises(ArtifactError, match="damaged"):
        Sidecar.read(tmp_path / "x.engine")


@pytest.mark.parametrize("name", ["manifest", "profiles", "backend", "plan_sha256", "rebuild"])
def test_a_sidecar_without_a_field_is_one_error(
    tmp_path: Path, name: str, make_sidecar: MakeSidecar
) -> None:
    data = json.loads(make_sidecar().to_json())
    del data[name]
    sidecar_path(tmp_path / "x.engine").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="damaged"):
        Sidecar.read(tmp_path / "x.engine")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("options",), None), (("options",), []), (("proof",), None),
        (("proof", "network"), [1]),
        (("proof", "warnings"), "x"), (("device",), "0"), (("source",), None),
        (("source_sha256",), None),
        (("backend",), []), (("version",), 5), (("plan_bytes",), "5"),
        (("compute_capabilities",), "8.9"), (("compute_capabilities",), [8.9]),
        (("rebuild",), "abc"), (("profiles",), [{}]), (("profiles",), [5]),
        (("profiles", 0, "pixel_values", "min"), []),
        (("profiles", 0, "pixel_values", "max"), ["32", 3, 32, 32]),
        (("gpu",), "x"), (("gpu", "name"), 1), (("checks",), [1]),
        (("checks", 0, "plan_sha256"), None), (("manifest", "inputs"), []),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_one_error(
    tmp_path: Path, make_sidecar: MakeSidecar, place: tuple[Any, ...], value: Any
) -> None:
    data = json.loads(make_sidecar().to_json())
    holder = data
    for key in place[:-1]:
        holder = holder.setdefault(key, {}) if isinstance(holder, dict) else holder[key]
    holder[place[-1]] = value
    sidecar_path(tmp_path / "x.engine").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="damaged"):
        Sidecar.read(tmp_path / "x.engine")


def test_concurrent_writers_use_separate_temporary_files(
    tmp_path: Path, make_sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sidecar_path(tmp_path / "x.engine")
    replace = os.replace

    def late(part: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        make_sidecar(version="10.1").write(path)
        replace(part, target)

    monkeypatch.setattr(os, "replace", late)
    make_sidecar().write(path)
    assert Sidecar.read(tmp_path / "x.engine") == make_sidecar()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_source_is_found_from_the_engines_folder(
    tmp_path: Path, make_sidecar: MakeSidecar
) -> None:
    models, engines = tmp_path / "models", tmp_path / "deep" / "engines"
    models.mkdir()
    engines.mkdir(parents=True)
    source, engine = models / "m.onnx", tmp_path / "link" / "x.engine"
    source.touch()
    engine.parent.symlink_to(engines)
    seen = relative_source(engine.parent, source)
    assert seen == "../../models/m.onnx"
    assert relative_source(models, source) == "m.onnx"
    sidecar = make_sidecar(source=seen)
    assert sidecar.source_path(engine).samefile(source)
    (engines / "m.onnx").touch()
    assert sidecar.source_path(engine).samefile(source)
    source.unlink()
    assert sidecar.source_path(engine) == engine.parent / "m.onnx"


def test_a_sidecar_of_a_newer_schema_says_so(tmp_path: Path, make_sidecar: MakeSidecar) -> None:
    text = make_sidecar(schema_version=2).to_json()
    sidecar_path(tmp_path / "x.engine").write_text(text)
    with pytest.raises(
        ArtifactError, match=r"schema version 2.*\nhint: pip install -U vit-export$"
    ):
        Sidecar.read(tmp_path / "x.engine")


def test_the_rebuild_command_is_quoted_for_a_shell(make_sidecar: MakeSidecar) -> None:
    command = make_sidecar().rebuild_command(Path("out/x.engine"))
    assert command == (
        "vit-export engine 'out/my model.onnx' --backend tensorrt --precision fp16 -o out/x.engine"
    )


def test_file_sha256_matches_the_standard_test_vector(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_sha256(path).startswith("ba7816bf8f01cfea")
