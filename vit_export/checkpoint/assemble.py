"""Fill a model with the tensors of a file, after the shapes of all of them were checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vit_export.checkpoint.layouts.rules import Binding, Step
from vit_export.checkpoint.tensor_files import TensorFile
from vit_export.errors import CheckpointError
from vit_export.model.pos_embed import resample_pos_embed
from vit_export.model.vit import VisionTransformer, sincos_pos_embed
from vit_export.variants import ViTConfig


def blank_model(config: ViTConfig) -> VisionTransformer:
    """Build a model in evaluation mode whose parameters have shapes but no data."""
    with torch.device("meta"):
        model = VisionTransformer(config).eval()
    if config.pos_embed == "sincos":  # computed, not loaded
        model.pos_embed = sincos_pos_embed(config)
    return model


@dataclass(frozen=True)
class Shapes:
    """The tensors of a file after their conversion, by our names."""

    converted: Mapping[str, Tensor]  # meta tensors
    failed: Mapping[str, str]  # the reason why a tensor cannot be converted


def convert_shapes(file: TensorFile, binding: Binding) -> Shapes:
    """Run every conversion on meta tensors."""
    converted: dict[str, Tensor] = {}
    failed: dict[str, str] = {}
    for step in binding.steps:
        sources = [file.tensors[name] for name in step.sources]
        wrong = [_dtype(tensor) for tensor in sources if not tensor.is_floating_point()]
        if wrong:
            failed[step.target] = f"checkpoint {wrong[0]}, expected floating-point numbers"
            continue
        try:
            converted[step.target] = step.conversion.apply(*(t.float() for t in sources))
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in sources)
            reason = str(error).splitlines()[0]
            failed[step.target] = f"checkpoint {shapes} cannot be converted ({reason})"
    return Shapes(converted, failed)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_shapes(
    shapes: Shapes, binding: Binding, *, config: ViTConfig, dropped: Set[str], source: str
) -> None:
    """Check that the tensors of a file are those of a model, except for the names in `dropped`.

    Raises:
        CheckpointError: Listing every tensor that is missing, unexpected or of another shape.
    """
    expected = blank_model(config).state_dict()
    sources = {step.target: ", ".join(step.sources) for step in binding.steps}
    wrong = [f"  ! {name}: {why}" for name, why in shapes.failed.items() if name not in dropped]
    missing = []
    for name, tensor in expected.items():
        if name in dropped or name in shapes.failed:
            continue
        if name not in shapes.converted:
            lacking = binding.incomplete.get(name)
            detail = f" (lacks {', '.join(lacking)})" if lacking else ""
            missing.append(f"  - {name}: in the model, not in the checkpoint{detail}")
            continue
        found, wanted = tuple(shapes.converted[name].shape), tuple(tensor.shape)
        if found != wanted:
            detail = f" (from {sources[name]})" if sources[name] != name else ""
            wrong.append(f"  ! {name}: checkpoint {found}, model {wanted}{detail}")
    surplus = [sources[n] for n in shapes.converted if n not in expected and n not in dropped]
    unexpected = [
        f"  + {name}: in the checkpoint, not in the model"
        for name in (*surplus, *binding.unexpected)
    ]
    lines = [*wrong, *missing, *unexpected]
    if lines:
        count = "1 tensor does" if len(lines) == 1 else f"{len(lines)} tensors do"
        raise CheckpointError(
            f"cannot load {source} into {config.variant!r}: {count} not fit\n" + "\n".join(lines),
            hint=_hint(missing, unexpected),
        )


def _hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    if missing and all(line.startswith(("  - head", "  - pre_logits")) for line in missing):
        return "--reset-head with --num-classes N, or --num-classes 0 to export features"
    if missing and unexpected:
        return "--layout NAME, if these are the names of another library"
    if missing:
        return "load the whole file: this one is not complete"
    if unexpected:
        return "--module package.module:factory, if the model has parts of its own"
    return "--variant NAME of the model that these weights were saved from"


@dataclass
class Account:
    """What became of the tensors; filled while the model is."""

    used: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def assemble(
    file: TensorFile, steps: Sequence[Step], *, source_config: ViTConfig, config: ViTConfig
) -> tuple[VisionTransformer, Account]:
    """Build a model and fill it, with one tensor of the file in memory at a time.

    Tensors of the model that no step fills become zero. Positions are resampled where the two
    configs, of the file's model and of the model wanted, differ in their grid.

    Raises:
        CheckpointError: A tensor contains NaN or Inf.
    """
    model, account = blank_model(config), Account()
    conversions: Counter[str] = Counter()
    not_finite: list[str] = []
    old, new = source_config.grid_hw, config.grid_hw
    for step in steps:
        data = [file.read(name) for name in step.sources]
        conversions.update(
            f"{_dtype(tensor)} -> float32" for tensor in data if tensor.dtype != torch.float32
        )
        if step.conversion.label:
            conversions[step.conversion.label] += len(data)
        value = step.conversion.apply(*data)
        if step.target == "pos_embed" and old != new:
            value = resample_pos_embed(
                value, source=old, target=new, num_prefix_tokens=config.num_prefix_tokens
            )
            grids = " -> ".join(f"{rows}x{columns}" for rows, columns in (old, new))
            account.changes.append(f"pos_embed resampled: {grids} patches, bicubic with antialias")
            account.resampled += step.sources
        else:
            account.used += step.sources
        if not _fill(model, step.target, value):
            not_finite += step.sources
    if not_finite:
        raise CheckpointError(
            f"{file.path} was not loaded: NaN or Inf in {len(not_finite)} tensors: "
            f"{', '.join(not_finite)}. The training diverged, or the file is damaged",
            hint="load an earlier checkpoint",
        )
    account.changes += [f"{what}: {count} tensors" for what, count in conversions.items()]
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            _fill(model, name, torch.zeros(tensor.shape))
            account.reinitialised.append(name)
    if account.reinitialised:
        account.changes.append(f"re-initialised to zero: {', '.join(account.reinitialised)}")
    return model, account


def _fill(model: nn.Module, name: str, value: Tensor) -> bool:
    """Copy a value into a tensor of the model, and return whether it is finite."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    data = torch.empty(value.shape, dtype=torch.float32)
    data.copy_(value)
    setattr(owner, attribute, nn.Parameter(data) if attribute in owner._parameters else data)
    return bool(torch.isfinite(data).all())
