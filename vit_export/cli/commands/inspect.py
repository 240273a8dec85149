"""`vit-export inspect`: show what is in a file."""

from pathlib import Path
from typing import Any

import click

from vit_export.cli.console import attributes, emit
from vit_export.cli.option_fields import command

OF_ONNX = (
    "path size_bytes producer ir_version opsets inputs outputs weights_bytes external_files "
    "op_counts manifest"
)


@command()
@click.argument("path", type=Path)
def inspect(path: Path, as_json: bool) -> None:
    """Show what is in an ONNX, engine, golden or ranges file.

    A ranges file, NAME.ranges.npz, holds activation ranges.
    """
    from vit_export.artifact.engine_sidecar import Sidecar, is_engine, read_plan_file
    from vit_export.artifact.golden import Golden
    from vit_export.artifact.onnx_reader import OnnxFile
    from vit_export.cli.report import files
    from vit_export.quantization.activation_ranges import Ranges

    data: dict[str, Any]
    if path.name.endswith(".ranges.npz"):
        ranges = Ranges.read(path)
        tensors = {name: attributes(r, "smallest largest") for name, r in ranges.tensors.items()}
        data = {"path": path, "images": ranges.images, "tensors": tensors}
        text = files.ranges_text(path, ranges)
    elif path.suffix == ".npz":
        golden = Golden.read(path)
        data = {"path": path, "samples": golden.samples, "e32": golden.e32}
        text = files.golden_text(path, golden)
    elif is_engine(path):
        sidecar = Sidecar.read(path)
        read_plan_file(path, sidecar)
        data, text = {"path": path, "sidecar": sidecar}, files.engine_file_text(path, sidecar)
    else:
        file = OnnxFile.read(path)
        file.check_external_data()
        data, text = attributes(file, OF_ONNX), files.onnx_file_text(file)
    emit(as_json, data, text)
