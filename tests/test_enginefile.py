"""The sidecar of an engine: what it keeps, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_export.enginefile import Sidecar, file_sha256, sidecar_path
from vit_export.errors import ArtifactError

MakeSidecar = Callable[..., Sidecar]


def test_a_sidecar_comes_back_as_it_was_written(tmp_path: Path, make_sidecar: MakeSidecar) -> None:
    """Manifest, profiles, GPU and checks."""
    engine = tmp_path / "x.engine"
    make_sidecar().write(sidecar_path(engine))
    assert Sidecar.read(engine) == make_sidecar()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.engine.json"]


def test_an_engine_without_a_sidecar_says_what_is_missing(tmp_path: Path) -> None:
    """One line, with the way out."""
    with pytest.raises(
        ArtifactError, match=r"there is no x.engine.json beside it.*vit-export engine"
    ):
        Sidecar.read(tmp_path / "x.engine")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema_version": 1}', "null", '{"schema_version": "new"}', "\0"],
)
def test_a_damaged_sidecar_is_one_error(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with it."""
    sidecar_path(tmp_path / "x.engine").write_text(text)
    with pytest.raises(ArtifactError, match="damaged"):
        Sidecar.read(tmp_path / "x.engine")


@pytest.mark.parametrize("name", ["manifest", "profiles", "backend", "plan_sha256", "rebuild"])
def test_a_sidecar_without_a_field_is_one_error(
    tmp_path: Path, name: str, make_sidecar: MakeSidecar
) -> None:
    """Each that a device needs."""
    data = json.loads(make_sidecar().to_json())
    del data[name]
    sidecar_path(tmp_path / "x.engine").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="damaged"):
        Sidecar.read(tmp_path / "x.engine")


def test_a_sidecar_of_a_newer_schema_says_so(tmp_path: Path, make_sidecar: MakeSidecar) -> None:
    """An older vit-export must not guess."""
    text = make_sidecar(schema_version=2).to_json()
    sidecar_path(tmp_path / "x.engine").write_text(text)
    with pytest.raises(ArtifactError, match="upgrade"):
        Sidecar.read(tmp_path / "x.engine")


def test_the_rebuild_command_can_be_typed(make_sidecar: MakeSidecar) -> None:
    """Names with blanks are quoted, and the folder is the engine's."""
    command = make_sidecar().rebuild_command(Path("out/x.engine"))
    assert command == (
        "vit-export engine 'out/my model.onnx' --backend tensorrt --precision fp16 -o out/x.engine"
    )


def test_a_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    """By the standard test vector of SHA-256."""
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_sha256(path).startswith("ba7816bf8f01cfea")
