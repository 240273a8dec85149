"""Any nn.Module to ONNX; the only file that sees torch and onnx together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ExportError
from vit_export.graph.names import forget_origin, name_after_modules
from vit_export.reference.outputs import Outputs, module_outputs

DEFAULT_OPSET = 20  # the first with a Gelu node; LayerNormalization came with 17
ATTENTION_OPSET = 23  # the first with an Attention node
_EXAMPLE_SIZE = 2  # of a dynamic dimension; torch.export treats sizes 0 and 1 as constants
_TORCH_FAILURES = (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported.

    Attributes:
        path: The `.onnx` file; its weights lie in `path` + `.data`.
        inputs: What the graph takes.
        outputs: What it gives, taps excluded.
        taps: Names of the tensors that leave the encoder blocks; graph outputs as well.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    taps: tuple[str, ...]


def export_module(
    module: nn.Module,
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    opset: int = DEFAULT_OPSET,
    example_sizes: Mapping[str, int] | None = None,
) -> Exported:
    """Export a module as it is: neither simplified nor measured; `pipeline.export` does both.

    The file holds no stack trace, source path or clock; the same module gives the same bytes.
    The weights are written from where they are to a file beside it, without a copy.

    Args:
        module: Any module of tensors in evaluation mode, or `Outputs` to choose what it gives.
        path: File to write.
        inputs: The arguments of its forward, in order; a dimension given as a string is dynamic.
        opset: Version of the ONNX operators.
        example_sizes: Sizes of dynamic dimensions to trace with, by name; 2 by default.

    Raises:
        ExportError: torch cannot express the module, or cannot keep a dimension dynamic.
    """
    examples = tuple(example_input(spec, example_sizes) for spec in inputs)
    model = module if isinstance(module, Outputs) else module_outputs(module.eval(), examples)
    names = [spec.name for spec in inputs]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                examples,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=list(model.all_names),
                dynamic_shapes=(tuple(_dynamic(spec) for spec in inputs),),
                verbose=False,
            )
    except _TORCH_FAILURES as error:
        raise ExportError(_explain(model.module, inputs, error)) from error
    if program is None:
        raise ExportError(f"torch.onnx.export returned no program for {_class(model.module)}")
    graph = program.model
    _check_fixed(model.module, inputs, graph)
    name_after_modules(graph, prefix="module.", keep={*names, *model.all_names})
    forget_origin(graph)
    ir.save(graph, path, external_data=path.name + ".data")
    _let_go(graph)
    outputs = OnnxFile.read(path).outputs
    return Exported(
        path=path,
        inputs=tuple(inputs),
        outputs=tuple(spec for spec in outputs if spec.name in model.names),
        taps=model.taps,
    )


def _let_go(model: ir.Model) -> None:
    """Drop what the exporter made of the weights: its rewrite rules keep their last graph."""
    for value in model.graph.initializers.values():
        value.const_value = None


def example_input(spec: TensorSpec, sizes: Mapping[str, int] | None = None) -> Tensor:
    """Zeros of the shape that a spec names, with some sizes for its dynamic dimensions."""
    known = sizes or {}
    shape = [known.get(s, _EXAMPLE_SIZE) if isinstance(s, str) else s for s in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _check_fixed(module: nn.Module, inputs: Sequence[TensorSpec], graph: ir.Model) -> None:
    """Raise ExportError when torch, without a word, made a dynamic dimension a constant."""
    for spec, value in zip(inputs, graph.graph.inputs, strict=True):
        for wanted, found in zip(spec.shape, value.shape or (), strict=True):
            if isinstance(wanted, str) and isinstance(found, int):
                raise ExportError(
                    f"torch cannot export {_class(module)} as ONNX: its forward fixes {wanted} of "
                    f"{spec.name!r} to {found}: try a fixed size, e.g. --batch 1"
                )


def _dynamic(spec: TensorSpec) -> dict[int, torch.export.Dim]:
    return {
        axis: torch.export.Dim(size)
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings that torch's exporter raises about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # two inputs that share a dynamic dimension, as they should
        warnings.filterwarnings("ignore", message="# The axis name: ", category=UserWarning)
        yield


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _explain(module: nn.Module, inputs: Sequence[TensorSpec], error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    message = f"torch cannot export {_class(module)} as ONNX: {' '.join(lines[:3])[:500]}"
    dynamic = [name for spec in inputs for name in spec.dynamic]
    if dynamic and any(name in str(cause) or name in str(error) for name in dynamic):
        message += f"; its forward fixes {' or '.join(dynamic)}: try a fixed size, e.g. --batch 1"
    return message
