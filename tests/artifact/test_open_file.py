"""Only regular files are opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_export.artifact.engine_sidecar import Sidecar
from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.open_file import open_file, read_text
from vit_export.errors import ArtifactError, CheckpointError


def test_a_link_to_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_file(tmp_path / "link") as stream:
        assert stream.read() == b"content"


def test_the_message_names_the_file_and_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "none", "none: no such checkpoint"),
        (tmp_path / "dangling", "dangling: no such checkpoint"),
        (tmp_path, "is a folder, expected a checkpoint"),
        (tmp_path / "pipe", "pipe: is a pipe, socket or device, expected a checkpoint"),
        (Path("/dev/zero"), "is a pipe, socket or device"),
        (tmp_path / "a\0b", "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            open_file(path, what="checkpoint", error=CheckpointError)


def test_text_must_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="odd: cannot be read as a list"):
        read_text(tmp_path / "odd", what="list")


@pytest.mark.parametrize(
    ("name", "read"),
    [("m.onnx", OnnxFile.read), ("m.golden.npz", Golden.read), ("m.engine", Sidecar.read)],
)
def test_a_pipe_in_place_of_an_artifact_is_an_immediate_error(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / (f"{name}.json" if name.endswith(".engine") else name))
    with pytest.raises(ArtifactError, match="is a pipe, socket or device"):
        read(tmp_path / name)
