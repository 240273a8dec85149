"""Which .onnx files TensorRT can build, and how many bytes their weights have."""

from __future__ import annotations

from dataclasses import dataclass

from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, EngineError

_DYNAMIC_INT8 = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}  # of one weight


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of a graph's weights, and of the same weights in float32."""

    stored_bytes: int
    as_fp32_bytes: int

    @classmethod
    def of(cls, file: OnnxFile) -> Weights:
        """Return those of a file."""
        sizes = [(t.dtype, max(t.nbytes, 0)) for t in file.initializers if t.dtype in _BYTES]
        return cls(
            stored_bytes=sum(nbytes for _, nbytes in sizes),
            as_fp32_bytes=sum(4 * nbytes // _BYTES[dtype] for dtype, nbytes in sizes),
        )


def check_source(file: OnnxFile) -> Manifest:
    """Check that TensorRT can build a file, and return its manifest.

    Raises:
        ArtifactError: The file has no manifest, lacks its weights, or was optimised by ONNX
            Runtime.
        EngineError: It is quantized dynamically, which TensorRT cannot run.
    """
    file.check_external_data()
    fused = {n.op_type: n.domain for n in file.nodes if n.domain.startswith("com.microsoft")}
    if fused:
        raise ArtifactError(
            f"{file.path}: was optimised by ONNX Runtime: it contains {', '.join(sorted(fused))} "
            f"of {', '.join(sorted(set(fused.values())))}, which no other runtime has",
            hint="use the file that vit-export wrote; TensorRT fuses nodes by itself",
        )
    dynamic = [name for name in _DYNAMIC_INT8 if file.op_counts.get(name)]
    if dynamic:
        raise EngineError(
            f"{file.path}: is quantized dynamically ({', '.join(dynamic)}), which TensorRT cannot "
            "run",
            hint="quantize it with fixed scales: vit-export quantize --precision int8-static",
        )
    if file.manifest is None:
        raise ArtifactError(
            f"{file.path}: has no vit-export manifest, so what its engine must compute is not "
            "known",
            hint="export the model with: vit-export onnx (any module: --module PKG:FACTORY)",
        )
    return file.manifest


def wide_products_allowed(manifest: Manifest, file: OnnxFile) -> int:
    """Return how many products and convolutions of a narrow graph may compute in float32.

    Those that the conversion left because their weights do not fit; in BF16 also convolutions,
    for which some GPUs have no kernel.
    """
    conversion = manifest.conversion
    left = conversion.planned - conversion.narrowed if conversion is not None else 0
    return left + (file.op_counts.get("Conv", 0) if manifest.precision == "bf16" else 0)
