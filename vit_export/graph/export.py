"""Export a torch module to ONNX. The only file that imports torch and onnx together."""

from __future__ import annotations

import logging
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
from vit_export.graph.builder import clear_origin
from vit_export.graph.names import name_after_modules
from vit_export.reference.outputs import Outputs, module_outputs

DEFAULT_OPSET = 20  # the first with a Gelu node; LayerNormalization came with 17
ATTENTION_OPSET = 23  # the first with an Attention node
FIXED_SIZE_HINT = "export it with a fixed size, e.g. --batch 1"
_EXAMPLE_SIZE = 2  # of a dynamic dimension; torch.export treats sizes 0 and 1 as constants
_TORCH_FAILURES = (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError)
_LOGGERS = ("torch", "onnxscript", "onnx_ir")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file."""

    path: Path  # its weights are in `path` + `.data`
    outputs: tuple[TensorSpec, ...]  # graph outputs that were asked for
    taps: tuple[str, ...]  # further graph outputs: the tensors that leave the encoder blocks


def export_module(
    module: nn.Module,
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    opset: int = DEFAULT_OPSET,
    example_sizes: Mapping[str, int] | None = None,
) -> Exported:
    """Export a module, without simplifying or validating the result; `pipeline.export` does both.

    The file holds no stack trace, source path or time; the same module gives the same bytes.
    The weights are written straight from the module to a file beside it, without a copy.

    Args:
        module: Any module of tensors in evaluation mode, or `Outputs` to choose the outputs.
        path: File to write.
        inputs: Arguments of its forward, in order; a dimension given as a string is dynamic.
        opset: Version of the ONNX operators.
        example_sizes: Sizes of dynamic dimensions to trace with, by name; 2 by default.

    Raises:
        ExportError: torch cannot express the module, or cannot keep a dimension dynamic.
    """
    examples = tuple(example_input(spec, example_sizes) for spec in inputs)
    model = module if isinstance(module, Outputs) else module_outputs(module.eval(), examples)
    names = [spec.name for spec in inputs]
    axes = tuple(
        {i: torch.export.Dim(size) for i, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    try:
        with _silenced(), torch.no_grad():
            program = torch.onnx.export(
                model,
                examples,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=list(model.all_names),
                dynamic_shapes=(axes,),
                verbose=False,
            )
    except _TORCH_FAILURES as error:
        raise _export_error(model.module, inputs, error) from error
    if program is None:
        raise ExportError(f"{_cannot_export(model.module)}: it returned no program")
    exported = program.model
    _check_dynamic_inputs(model.module, inputs, exported)
    name_after_modules(exported, prefix="module.", keep={*names, *model.all_names})
    clear_origin(exported)
    ir.save(exported, path, external_data=path.name + ".data")
    for value in exported.graph.initializers.values():
        value.const_value = None  # the exporter's rewrite rules keep their last graph alive
    outputs = OnnxFile.read(path).outputs
    return Exported(
        path=path,
        outputs=tuple(spec for spec in outputs if spec.name in model.names),
        taps=model.taps,
    )


def example_input(spec: TensorSpec, sizes: Mapping[str, int] | None = None) -> Tensor:
    """Return zeros of a spec's shape; dynamic dimensions have `sizes`, or 2."""
    known = sizes or {}
    shape = [known.get(s, _EXAMPLE_SIZE) if isinstance(s, str) else s for s in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence what torch's exporter warns and logs about itself; a failure is an exception.

    Loggers with a level of their own (`TORCH_LOGS=onnx`) still print.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # two inputs share a dynamic dimension, which is intended
            warnings.filterwarnings("ignore", message="# The axis name: ", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_dynamic_inputs(module: nn.Module, inputs: Sequence[TensorSpec], model: ir.Model) -> None:
    """Raise ExportError when torch silently made a dynamic dimension constant."""
    for spec, value in zip(inputs, model.graph.inputs, strict=True):
        for size, exported in zip(spec.shape, value.shape or (), strict=True):
            if isinstance(size, str) and isinstance(exported, int):
                text = f"its forward fixes {size} of {spec.name!r} to {exported}"
                raise ExportError(f"{_cannot_export(module)}: {text}", hint=FIXED_SIZE_HINT)


def _export_error(module: nn.Module, inputs: Sequence[TensorSpec], error: Exception) -> ExportError:
    """Return an error with the first lines of torch's innermost cause."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    message = f"{_cannot_export(module)}: {' '.join(lines[:3])[:500]}"
    dynamic = [name for spec in inputs for name in spec.dynamic]
    if any(name in str(cause) or name in str(error) for name in dynamic):
        fixed = f"{message}; its forward fixes {' or '.join(dynamic)}"
        return ExportError(fixed, hint=FIXED_SIZE_HINT)
    return ExportError(message)


def _cannot_export(module: nn.Module) -> str:
    return f"torch cannot export {type(module).__module__}.{type(module).__qualname__} as ONNX"
