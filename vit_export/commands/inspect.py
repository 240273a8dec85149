"""`vit-export inspect`: what is in a file."""

from __future__ import annotations

import click

from vit_export.commands.options import json_option
from vit_export.console import emit


@click.command()
@click.argument("path")
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Show what is in an ONNX or golden file."""
    from pathlib import Path

    from vit_export import report

    if path.endswith(".npz"):
        from vit_export.golden import Golden

        found = Golden.read(path)
        data = {"path": path, "samples": found.samples, "e32": found.e32}
        emit(as_json, data, report.golden(Path(path), found))
        return
    from vit_export.onnxfile import OnnxFile

    file = OnnxFile.read(path)
    file.check_external_data()
    data = {
        "path": file.path,
        "size_bytes": file.size_bytes,
        "producer": file.producer,
        "ir_version": file.ir_version,
        "opsets": file.opsets,
        "inputs": file.inputs,
        "outputs": file.outputs,
        "weights_bytes": file.weights_bytes,
        "external_files": file.external_files,
        "op_counts": file.op_counts,
        "manifest": file.manifest,
    }
    emit(as_json, data, report.described(file))
