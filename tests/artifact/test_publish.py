"""A finished artifact takes its name, and nothing of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_export.artifact.publish import check_golden_not_shared, check_output_name
from vit_export.errors import OutputError


@pytest.mark.parametrize(("own", "other"), [("b.onnx", "b.engine"), ("b.engine", "b.onnx")])
def test_a_shared_golden_file_is_not_replaced(tmp_path: Path, own: str, other: str) -> None:
    place, golden = tmp_path / "b.golden.npz", tmp_path / "source.golden.npz"
    golden.write_bytes(b"truth")
    check_golden_not_shared(tmp_path / own, golden)
    place.write_bytes(b"another")
    check_golden_not_shared(tmp_path / own, golden)
    (tmp_path / other).touch()
    with pytest.raises(OutputError, match=rf"replace b\.golden\.npz, which {other} is measured"):
        check_golden_not_shared(tmp_path / own, golden)
    place.write_bytes(b"truth")
    check_golden_not_shared(tmp_path / own, golden)


def test_a_folder_under_the_name_of_the_golden_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.golden.npz").mkdir()
    with pytest.raises(OutputError, match=r"b\.golden\.npz: it is a folder"):
        check_output_name(tmp_path / "b.onnx")
