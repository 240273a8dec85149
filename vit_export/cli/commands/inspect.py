"""`vit-export inspect`: show what is in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vit_export.cli.console import attributes, emit
from vit_export.cli.option_fields import command


@command()
@click.argument("path", type=Path)
def inspect(path: Path, as_json: bool) -> None:
    """Show what is in an ONNX, engine, golden or ranges file.

    A ranges file, NAME.ranges.npz, holds activation ranges.
    """
    if path.name.endswith(".ranges.npz"):
        data, text = _ranges(path)
    elif path.suffix == ".npz":
        data, text = _golden(path)
    elif path.suffix == ".engine":
        data, text = _engine(path)
    else:
        data, text = _onnx(path)
    emit(as_json, data, text)


def _golden(path: Path) -> tuple[dict[str, Any], str]:
    from vit_export.artifact.golden import Golden
    from vit_export.cli.report.files import golden_text

    golden = Golden.read(path)
    data = {"path": path, "samples": golden.samples, "e32": golden.e32}
    return data, golden_text(path, golden)


def _ranges(path: Path) -> tuple[dict[str, Any], str]:
    from vit_export.cli.report.files import ranges_text
    from vit_export.quantization.activation_ranges import Ranges

    ranges = Ranges.read(path)
    tensors = {name: attributes(r, "smallest largest") for name, r in ranges.tensors.items()}
    data = {"path": path, "images": ranges.images, "tensors": tensors}
    return data, ranges_text(path, ranges)


def _engine(path: Path) -> tuple[dict[str, Any], str]:
    from vit_export.artifact.engine_sidecar import Sidecar
    from vit_export.cli.report.engines import engine_file_text
    from vit_export.runtime.tensorrt.plan import check_plan_file

    sidecar = Sidecar.read(path)
    check_plan_file(path, sidecar)
    return {"path": path, "sidecar": sidecar}, engine_file_text(path, sidecar)


def _onnx(path: Path) -> tuple[dict[str, Any], str]:
    from vit_export.artifact.onnx_reader import OnnxFile
    from vit_export.cli.report.files import onnx_file_text

    file = OnnxFile.read(path)
    file.check_external_data()
    names = (
        "path size_bytes producer ir_version opsets inputs outputs weights_bytes external_files "
        "op_counts manifest"
    )
    return attributes(file, names), onnx_file_text(file)
