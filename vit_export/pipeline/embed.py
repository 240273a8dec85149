"""Put the image preparation into the graph of an artifact, and measure it there."""

from pathlib import Path

from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import pack_artifact
from vit_export.artifact.vocabulary import PIXEL_VALUES
from vit_export.errors import GateError
from vit_export.gate.preparation import measure_preparation
from vit_export.graph.embed import embed_preparation
from vit_export.progress import Progress
from vit_export.runtime.onnxruntime.runner import OrtRunner


def pack_embedded(
    source: OnnxFile,
    path: Path,
    manifest: Manifest,
    *,
    resize: str,
    scratch: Path,
    stage: str,
    external_data: bool,
    progress: Progress,
) -> tuple[OnnxFile, Manifest, Stage]:
    """Write an artifact whose graph prepares images, and measure the preparation in it.

    Args:
        source: The network; `path` may be the same file.
        path: File to write.
        manifest: Of the network.
        resize: One of `RESIZE_FORMS`.
        scratch: Folder for temporary files.
        stage: Stage of the certificate that the measurement belongs to.
        external_data: Whether to store the weights beside the file.
        progress: Called with each step.

    Returns:
        The packed file, its manifest, and the line of the preparation for the certificate.

    Raises:
        UsageError: The preparation cannot be expressed.
        GateError: The graph does not prepare images as `vit_export.images` does.
    """
    progress("embed the image preparation")
    joined = scratch / "embedded.onnx"
    manifest, preprocess = embed_preparation(source.path, joined, manifest, resize)
    packed = pack_artifact(OnnxFile.read(joined), path, manifest, external_data=external_data)
    runner = OrtRunner(packed.path, provider="cpu", expose=[PIXEL_VALUES], alone=True)
    name = f"{stage}, image preparation"
    progress(f"measure {name}")
    line = measure_preparation(runner, preprocess, resize=resize, stage=name)
    runner.release()
    if not line.passed:
        raise GateError(f"{line.name}: {line.reason}; nothing was written")
    return packed, manifest, line
