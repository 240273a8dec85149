"""`vit-export inspect`: show what is in a file."""

from __future__ import annotations

from pathlib import Path

import click

from vit_export.cli.console import attributes, emit
from vit_export.cli.option_fields import command


@command()
@click.argument("path")
def inspect(path: str, as_json: bool) -> None:
    """Show what is in an ONNX, engine or golden file, or in a file of activation ranges."""
    if path.endswith(".ranges.npz"):
        _ranges(path, as_json)
    elif path.endswith(".npz"):
        _golden(path, as_json)
    elif path.endswith(".engine"):
        _engine(path, as_json)
    else:
        _onnx(path, as_json)


def _golden(path: str, as_json: bool) -> None:
    from vit_export.artifact.golden import Golden
    from vit_export.cli.report.files import golden_text

    golden = Golden.read(path)
    data = {"path": path, "samples": golden.samples, "e32": golden.e32}
    emit(as_json, data, golden_text(Path(path), golden))


def _ranges(path: str, as_json: bool) -> None:
    from vit_export.cli.report.files import ranges_text
    from vit_export.quantization.activation_ranges import Ranges

    ranges = Ranges.read(path)
    tensors = {
        name: {"smallest": r.smallest, "largest": r.largest} for name, r in ranges.tensors.items()
    }
    data = {"path": path, "images": ranges.images, "tensors": tensors}
    emit(as_json, data, ranges_text(Path(path), ranges))


def _engine(path: str, as_json: bool) -> None:
    from vit_export.artifact.engine_sidecar import Sidecar
    from vit_export.cli.report.engines import engine_file_text
    from vit_export.runtime.tensorrt.plan import check_plan_file

    sidecar = Sidecar.read(path)
    check_plan_file(Path(path), sidecar)
    emit(as_json, {"path": path, "sidecar": sidecar}, engine_file_text(Path(path), sidecar))


def _onnx(path: str, as_json: bool) -> None:
    from vit_export.artifact.onnx_reader import OnnxFile
    from vit_export.cli.report.files import onnx_file_text

    file = OnnxFile.read(path)
    file.check_external_data()
    names = (
        "path size_bytes producer ir_version opsets inputs outputs weights_bytes external_files "
        "op_counts manifest"
    )
    emit(as_json, attributes(file, names), onnx_file_text(file))
