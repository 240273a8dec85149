"""An .onnx file as a TensorRT network: parsed, and with the signature that its manifest names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.errors import EngineError
from vit_export.runtime.tensorrt.backend import DTYPES, Backend


@dataclass(frozen=True, kw_only=True)
class Network:
    """A parsed network, and what must live as long as it does."""

    builder: Any
    definition: Any
    parser: Any

    @property
    def layers(self) -> Iterator[Any]:
        """Its layers, in the order of the parser."""
        for index in range(self.definition.num_layers):
            yield self.definition.get_layer(index)


def parse(backend: Backend, path: Path) -> Network:
    """Parse a file; its weights may lie beside it.

    The network is strongly typed: the types that stand in the graph are what runs. TensorRT 11
    knows nothing else, 10 wants the flag.

    Raises:
        EngineError: TensorRT cannot start, or does not understand the graph.
    """
    trt = backend.trt
    with backend.collect_messages() as said:
        try:
            builder = trt.Builder(backend.logger)
        except (TypeError, RuntimeError) as error:  # pybind11's word for a null pointer
            raise EngineError(
                f"{backend.name} {backend.version} cannot start a builder: {said.reason()}; it needs "
                "an NVIDIA GPU and its driver; --backend tensorrt-rtx builds without"
            ) from error
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        definition = builder.create_network(flags)
        parser = trt.OnnxParser(definition, backend.logger)
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            found = [
                f"{e.node_operator() or 'the file'} {e.node_name()!r}: {e.desc()}" for e in errors
            ]
            raise EngineError(
                f"{backend.name} {backend.version} does not understand {path.name}: "
                f"{'; '.join(found[:3]) or said.reason()}"
                f"{f'; and {len(found) - 3} more' if len(found) > 3 else ''}"
            )
    return Network(builder=builder, definition=definition, parser=parser)


def allow_plain_attention(backend: Backend, network: Network) -> None:
    """Let TensorRT take float32 attention apart, for which it has no fused kernel.

    An int8 graph has it too: what is quantized there are the products with weights.
    """
    trt = backend.trt
    if not hasattr(trt, "IAttentionOutputLayer"):
        return  # TensorRT before 10.14, whose parser refuses the node
    for layer in network.layers:
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # the binding gives the base class
            if layer.attention.get_input(0).dtype.name == "FLOAT":
                layer.attention.decomposable = True


def signature(network: Network) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs; a dynamic dimension is `"?"`."""
    definition = network.definition
    inputs = [_spec(definition.get_input(index)) for index in range(definition.num_inputs)]
    outputs = [_spec(definition.get_output(index)) for index in range(definition.num_outputs)]
    return inputs, outputs


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple("?" if size < 0 else int(size) for size in tuple(tensor.shape))
    return TensorSpec(str(tensor.name), DTYPES.get(tensor.dtype.name, tensor.dtype.name), shape)


def check_same_signature(network: Network, manifest: Manifest, name: str) -> None:
    """Raise EngineError unless inputs and outputs are those of the manifest."""
    found = signature(network)
    for what, have, want in zip(
        ("input", "output"), found, (manifest.inputs, manifest.outputs), strict=True
    ):
        if [_comparable(spec) for spec in have] != [_comparable(spec) for spec in want]:
            raise EngineError(
                f"{name}: TensorRT sees the {what}s {'; '.join(map(str, have))}, its manifest "
                f"names {'; '.join(map(str, want))}; export the file again"
            )


def _comparable(spec: TensorSpec) -> TensorSpec:
    shape = tuple("?" if isinstance(size, str) else size for size in spec.shape)
    return TensorSpec(spec.name, spec.dtype, shape)
