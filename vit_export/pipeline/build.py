"""Export, simplify and pack a model: the part of an export that needs no reference."""

from pathlib import Path

from vit_export import __version__
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import pack_artifact
from vit_export.graph.export import export_module
from vit_export.graph.simplify import simplify
from vit_export.host.machine import installed_versions
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import LoadedSource

TOOLCHAIN = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "numpy")


def build(
    loaded: LoadedSource, opset: int, path: Path, settings: ExportSettings
) -> tuple[OnnxFile, OnnxFile, Manifest]:
    """Return the exported graph, the packed file and its manifest.

    The manifest lacks what comes later: hash, certificate and activation.
    """
    scratch = path.parent / "scratch"  # a subfolder, so that its files cannot overwrite the result
    scratch.mkdir(exist_ok=True)
    raw = export_module(
        loaded.model,
        scratch / "exported.onnx",
        loaded.inputs,
        opset=opset,
        example_sizes=loaded.example_sizes,
    )
    manifest = Manifest(
        variant=loaded.variant,
        config=loaded.config,
        weights=loaded.weights,
        opset=opset,
        inputs=loaded.inputs,
        outputs=tuple(s for s in raw.outputs if s.name in loaded.outputs),
        preprocess=loaded.preprocess,
        labels=loaded.labels,
        blocks=loaded.model.taps,
        token_merging=loaded.token_merging,
        toolchain={"vit-export": __version__, **installed_versions(TOOLCHAIN)},
    )
    final = raw
    if settings.simplify:
        simplify(raw.path, scratch / "simplified.onnx")
        final = OnnxFile.read(scratch / "simplified.onnx")
    packed = pack_artifact(final, path, manifest, external_data=settings.external_data)
    return raw, packed, manifest.replace(outputs=packed.outputs)
