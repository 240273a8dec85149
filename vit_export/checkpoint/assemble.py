"""Fill a model with the tensors of a file, after the shapes of all of them were checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The tensors of a file after their conversion, without data.

    Attributes:
        converted: Meta tensors under our names.
        failed: Our names of tensors that cannot be converted, each with the reason.
    """

    converted: Mapping[str, Tensor]
    failed: Mapping[str, str]


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
    return Shapes(converted=converted, failed=failed)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_shapes(
    shapes: Shapes, binding: Binding, *, config: ViTConfig, dropped: Iterable[str], source: str
) -> None:
    """Check that the tensors of a file are those of a model.

    Args:
        shapes: The converted tensors.
        binding: The layout applied to the file.
        config: Architecture of the file's model.
        dropped: Our names that are not taken from the file.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: Listing every tensor that is missing, unexpected or of another shape.
    """
    expected = blank_model(config).state_dict()
    sources = {step.target: step.sources for step in binding.steps}
    skip = set(dropped)
    wrong = [f"  ! {name}: {reason}" for name, reason in shapes.failed.items() if name not in skip]
    missing = []
    for name, tensor in expected.items():
        if name in skip or name in shapes.failed:
            continue
        converted = shapes.converted.get(name)
        if converted is None:
            lacking = binding.incomplete.get(name)
            detail = f" (lacks {', '.join(lacking)})" if lacking else ""
            missing.append(f"  - {name}: in the model, not in the checkpoint{detail}")
        elif converted.shape != tensor.shape:
            detail = "" if sources[name] == (name,) else f" (from {', '.join(sources[name])})"
            wrong.append(
                f"  ! {name}: checkpoint {tuple(converted.shape)}, model {tuple(tensor.shape)}"
                + detail
            )
    surplus = [
        ", ".join(sources[name])
        for name in shapes.converted
        if name not in expected and name not in skip
    ]
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

    Args:
        file: The weights.
        steps: Tensors to load; all others of the model become zero.
        source_config: Architecture of the file's model.
        config: The architecture wanted: the same, or with another image size or head.

    Raises:
        CheckpointError: A tensor contains NaN or Inf.
    """
    model, account = blank_model(config), Account()
    conversions: Counter[str] = Counter()
    not_finite: list[str] = []
    for step in steps:
        data = [file.read(name) for name in step.sources]
        for tensor in data:
            if tensor.dtype != torch.float32:
                conversions[f"{_dtype(tensor)} -> float32"] += 1
        value = step.conversion.apply(*data)
        if step.conversion.label:
            conversions[step.conversion.label] += len(data)
        if step.target == "pos_embed" and source_config.grid_hw != config.grid_hw:
            value = _resample(value, source_config, config, account)
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


def _resample(
    pos_embed: Tensor, source_config: ViTConfig, config: ViTConfig, account: Account
) -> Tensor:
    old, new = ("x".join(map(str, c.grid_hw)) for c in (source_config, config))
    account.changes.append(f"pos_embed resampled: {old} -> {new} patches, bicubic with antialias")
    return resample_pos_embed(
        pos_embed,
        source=source_config.grid_hw,
        target=config.grid_hw,
        num_prefix_tokens=config.num_prefix_tokens,
    )


def _fill(model: nn.Module, name: str, value: Tensor) -> bool:
    """Copy a value into a tensor of the model, and return whether it is finite."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    data = torch.empty(value.shape, dtype=torch.float32)
    data.copy_(value)
    setattr(owner, attribute, nn.Parameter(data) if attribute in owner._parameters else data)
    return bool(torch.isfinite(data).all())
