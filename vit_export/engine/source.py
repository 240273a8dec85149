"""Which .onnx files TensorRT may be given, and what they hold that an engine must show."""

from __future__ import annotations

from dataclasses import dataclass

from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, EngineError

INT8_BY_RECIPE = {"static"}  # QuantizeLinear and DequantizeLinear; "dynamic" has MatMulInteger
_DYNAMIC_INT8 = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of a graph's weights, and of the same in float32."""

    stored_bytes: int
    as_fp32_bytes: int

    @classmethod
    def of(cls, file: OnnxFile) -> Weights:
        """Those of a file."""
        stored = {t.dtype: 0 for t in file.initializers}
        for tensor in file.initializers:
            stored[tensor.dtype] += max(tensor.nbytes, 0)
        narrow = {dtype: size for dtype, size in stored.items() if dtype in _FLOATS}
        return cls(
            stored_bytes=sum(narrow.values()),
            as_fp32_bytes=sum(4 * size // _FLOATS[dtype] for dtype, size in narrow.items()),
        )


def check_source(file: OnnxFile) -> Manifest:
    """Refuse a graph that TensorRT must not be given.

    Returns:
        The manifest of one that it may.

    Raises:
        ArtifactError: The file has no manifest, lacks its weights, or was optimised for
            ONNX Runtime.
        EngineError: It is quantized in a way that TensorRT cannot run.
    """
    file.check_external_data()
    fused = {n.op_type: n.domain for n in file.nodes if n.domain.startswith("com.microsoft")}
    if fused:
        raise ArtifactError(
            f"{file.path}: was optimised by ONNX Runtime: it holds {', '.join(sorted(fused))} of "
            f"{', '.join(sorted(set(fused.values())))}, which no other runtime knows; give "
            "TensorRT the file that vit-export wrote, it does its own fusing"
        )
    dynamic = [name for name in _DYNAMIC_INT8 if file.op_counts.get(name)]
    if dynamic:
        raise EngineError(
            f"{file.path}: is quantized dynamically ({', '.join(dynamic)}), which TensorRT cannot "
            "run; quantize it with fixed scales: vit-export quantize --precision int8-static"
        )
    if file.manifest is None:
        raise ArtifactError(
            f"{file.path}: has no vit-export manifest, so nothing says what its engine must "
            "compute; export the model with: vit-export onnx (any module: --module PKG:FACTORY)"
        )
    return file.manifest


def wide_products_allowed(manifest: Manifest, file: OnnxFile) -> int:
    """How many products and convolutions of a narrow graph may compute in float32.

    Those that the conversion kept because their weights do not fit; in BF16 convolutions too,
    for which there is no kernel everywhere.
    """
    conversion = manifest.conversion
    kept = conversion.planned - conversion.narrowed if conversion is not None else 0
    return kept + (file.op_counts.get("Conv", 0) if manifest.precision == "bf16" else 0)
