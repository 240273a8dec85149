"""What every door that writes an artifact returns."""

from dataclasses import dataclass
from pathlib import Path

from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.gate.validate import Comparison


@dataclass(frozen=True, kw_only=True)
class ArtifactResult:
    """Files and gate of an artifact.

    Attributes:
        path: The `.onnx` file.
        golden: The golden file beside it.
        manifest: The manifest in the file, certificate included.
        comparison: The gate on the file.
        files: All files, external data included.
        seconds: Duration.
    """

    path: Path
    golden: Path
    manifest: Manifest
    comparison: Comparison
    files: tuple[Path, ...]
    seconds: float

    @property
    def size_bytes(self) -> int:
        """Size of the artifact, external data included, golden file excluded."""
        return OnnxFile.read(self.path).total_bytes
