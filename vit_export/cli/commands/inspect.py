"""`vit-export inspect`: what is in a file."""

from __future__ import annotations

import click

from vit_export.cli.console import emit
from vit_export.cli.options import json_option


@click.command()
@click.argument("path")
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Show what is in an ONNX, engine or golden file."""
    from pathlib import Path

    from vit_export.cli.report.files import golden_text, onnx_file_text

    if path.endswith(".npz"):
        from vit_export.artifact.golden import Golden

        found = Golden.read(path)
        data = {"path": path, "samples": found.samples, "e32": found.e32}
        emit(as_json, data, golden_text(Path(path), found))
        return
    if path.endswith(".engine"):
        from vit_export.artifact.engine_sidecar import Sidecar
        from vit_export.cli.report.engines import engine_file_text
        from vit_export.runtime.tensorrt.compatibility import check_plan_undamaged

        sidecar = Sidecar.read(path)
        check_plan_undamaged(Path(path), sidecar)
        emit(as_json, {"path": path, "sidecar": sidecar}, engine_file_text(Path(path), sidecar))
        return
    from vit_export.artifact.onnx_reader import OnnxFile

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
    emit(as_json, data, onnx_file_text(file))
