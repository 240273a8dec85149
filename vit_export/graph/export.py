"""Export a torch module to ONNX. The only file that imports torch and onnx together."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.vocabulary import OPSETS
from vit_export.errors import ExportError
from vit_export.graph.builder import clear_origin
from vit_export.graph.io import save_graph
from vit_export.graph.names import name_after_modules
from vit_export.graph.repeat import BEFORE, TRACED, Weights, repeat_block
from vit_export.model.last_block import LastBlock
from vit_export.model.vit import Block, VisionTransformer
from vit_export.reference.example import example_input
from vit_export.reference.outputs import Outputs

FIXED_SIZE_HINT = "export it with a fixed size, e.g. --batch 1"
_TORCH_FAILURES = (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError)
_LOGGERS = ("torch", "onnxscript", "onnx_ir")


def export_module(
    model: Outputs,
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    opset: int = OPSETS["decomposed"],
    example_sizes: Mapping[str, int] | None = None,
) -> OnnxFile:
    """Export a module in evaluation mode, without simplifying or validating the result.

    The file holds no stack trace, source path or time; the same module gives the same bytes.
    Its weights are written straight from the module to `path` + `.data`, without a copy. Its taps
    are graph outputs too. ExportError where torch cannot express it or keep a dimension dynamic.
    """
    names = [spec.name for spec in inputs]
    axes = tuple(
        {i: torch.export.Dim(size) for i, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    try:
        with (
            _silenced(),
            _one_thread(),
            torch.no_grad(),
            _read_only(model),
            _shortened(model) as repeated,
        ):
            program = torch.onnx.export(
                model,
                tuple(example_input(spec, example_sizes) for spec in inputs),
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=list(model.all_names),
                dynamic_shapes=(axes,),
                verbose=False,
            )
    except _TORCH_FAILURES as error:
        raise _export_error(model.module, *_reason(error, inputs)) from error
    exported = cast(torch.onnx.ONNXProgram, program).model  # `dynamo=True` gives one or raises
    for spec, value in zip(inputs, exported.graph.inputs, strict=True):
        for size, fixed in zip(spec.shape, value.shape or (), strict=True):
            if isinstance(size, str) and isinstance(fixed, int):  # torch says nothing
                reason = f"its forward fixes {size} of {spec.name!r} to {fixed}"
                raise _export_error(model.module, reason, FIXED_SIZE_HINT)
    name_after_modules(exported, keep={*names, *model.all_names})
    clear_origin(exported)
    if repeated:
        repeat_block(exported.graph, repeated[0], repeated[1:])
    save_graph(exported, path)
    for value in exported.graph.initializers.values():
        value.const_value = None  # the exporter's rewrite rules keep their last graph alive
    return OnnxFile.read(path)


@contextmanager
def _read_only(model: Outputs) -> Iterator[None]:
    """Let the last block of a Vision Transformer compute only the tokens that are read."""
    module, read = model.module, model.read
    if read is None or not isinstance(module, VisionTransformer):
        yield
        return
    block = cast(Block, module.blocks[-1])
    module.blocks[-1], model.read = LastBlock(block, read), None
    try:
        yield
    finally:
        module.blocks[-1], model.read = block, read


@contextmanager
def _shortened(model: Outputs) -> Iterator[list[Weights]]:
    """Trace only the first, second and last block of a Vision Transformer where the rest are alike.

    The second is traced with random weights, which no pass of the exporter can merge with equal
    ones. Yields these and then those of each block in its place; nothing where all are traced, as
    without taps: the outputs of the blocks show where one begins and ends.
    """
    module, taps = model.module, model.taps
    whole = module.blocks if isinstance(module, VisionTransformer) else nn.ModuleList()
    alike = len({str(block) for block in whole[1:-1]}) == 1 and len(taps) == len(whole)
    if not isinstance(module, VisionTransformer) or not alike:
        yield []
        return
    middle, traced = whole[1:-1], copy.deepcopy(whole[1])
    generator = torch.Generator().manual_seed(0)
    for parameter in traced.parameters():
        nn.init.uniform_(parameter, generator=generator)
    model.taps = (BEFORE, TRACED, taps[-1])
    module.blocks = nn.ModuleList()
    for name, block in zip(model.taps, (whole[0], traced, whole[-1]), strict=True):
        module.blocks.add_module(name.removeprefix("blocks."), block)
    try:
        yield [
            {name: weight.detach().numpy() for name, weight in block.named_parameters()}
            for block in (traced, *middle)
        ]
    finally:
        module.blocks, model.taps = whole, taps


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread, as a forked child process must: it lacks those of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence what torch's exporter warns and logs about itself; a failure is an exception.

    Loggers with a level of their own (`TORCH_LOGS=onnx`) still print.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # two inputs share a dynamic dimension, which is intended
            warnings.filterwarnings("ignore", message="# The axis name: ", category=UserWarning)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _export_error(module: nn.Module, reason: str, hint: str) -> ExportError:
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return ExportError(f"torch cannot export {name} as ONNX: {reason}", hint=hint)


def _reason(error: Exception, inputs: Sequence[TensorSpec]) -> tuple[str, str]:
    """Return the first lines of torch's innermost cause, and a hint or an empty string."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = " ".join(lines[:3])[:500]
    dynamic = [name for spec in inputs for name in spec.dynamic]
    if any(name in str(cause) or name in str(error) for name in dynamic):
        return f"{reason}; its forward fixes {' or '.join(dynamic)}", FIXED_SIZE_HINT
    return reason, ""
