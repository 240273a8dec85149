"""An .onnx file that TensorRT can build, as a network with the signature of its manifest."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, EngineError
from vit_export.runtime.tensorrt.backend import Backend, tensor_spec, without_names

SHOWN_ERRORS = 3  # of the parser
_DYNAMIC_INT8 = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


def check_source(file: OnnxFile) -> Manifest:
    """Check that TensorRT can build a file, and return its manifest."""
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
    if file.manifest.embedded:
        raise EngineError(
            f"{file.path}: prepares images of any size in its graph, and an engine is built for "
            "one range of sizes",
            hint="build the engine from an export with --preprocess none; `predict` and the other "
            "commands prepare the images for it",
        )
    return file.manifest


@dataclass(frozen=True, kw_only=True)
class Network:
    """A parsed network, with the objects that must live as long as it does."""

    builder: Any
    definition: Any
    parser: Any

    @property
    def layers(self) -> Iterator[Any]:
        """The layers, in the order of the parser."""
        return map(self.definition.get_layer, range(self.definition.num_layers))


def parse(backend: Backend, path: Path) -> Network:
    """Parse a file; its weights may be in external data beside it.

    The network is strongly typed: it computes in the types of the graph. TensorRT 11 has no other
    kind, TensorRT 10 needs the flag.
    """
    trt, version = backend.trt, f"{backend.name} {backend.version}"
    with backend.collect_messages() as messages:
        try:
            builder = trt.Builder(backend.logger)
        except (TypeError, RuntimeError) as error:  # how pybind11 reports a null pointer
            raise EngineError(
                f"{version} cannot start a builder, which needs an NVIDIA GPU and its driver: "
                f"{messages.reason()}",
                hint="--backend tensorrt-rtx builds without a GPU",
            ) from error
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        definition = builder.create_network(flags)
        parser = trt.OnnxParser(definition, backend.logger)
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            lines = [
                f"{e.node_operator() or 'the file'} {e.node_name()!r}: {e.desc()}" for e in errors
            ]
            more = f"; and {len(lines) - SHOWN_ERRORS} more" if len(lines) > SHOWN_ERRORS else ""
            raise EngineError(
                f"{version} cannot parse {path.name}: "
                f"{'; '.join(lines[:SHOWN_ERRORS]) or messages.reason()}{more}"
            )
    return Network(builder=builder, definition=definition, parser=parser)


def allow_plain_attention(backend: Backend, network: Network) -> None:
    """Let TensorRT decompose float32 attention, for which it has no fused kernel.

    An int8 graph has it too: only its products with weights are quantized.
    """
    trt = backend.trt
    if not hasattr(trt, "IAttentionOutputLayer"):
        return  # TensorRT before 10.14, whose parser refuses the node
    for layer in network.layers:
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # the binding returns the base class
            if layer.attention.get_input(0).dtype.name == "FLOAT":
                layer.attention.decomposable = True


def check_signature(network: Network, manifest: Manifest, name: str) -> None:
    """Raise EngineError unless inputs and outputs are those of the manifest."""
    definition = network.definition
    inputs = map(definition.get_input, range(definition.num_inputs))
    outputs = map(definition.get_output, range(definition.num_outputs))
    for kind, tensors, expected in (
        ("inputs", inputs, manifest.inputs),
        ("outputs", outputs, manifest.outputs),
    ):
        found = [tensor_spec(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
        if found != [without_names(spec) for spec in expected]:
            raise EngineError(
                f"{name}: TensorRT reads the {kind} {'; '.join(map(str, found))}, its manifest "
                f"has {'; '.join(map(str, expected))}",
                hint="export the file again",
            )
