"""Tensors of a file into a model: shapes checked first, all of them, then the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_export.checkpoint.layouts.rules import Binding, Step
from vit_export.checkpoint.tensor_files import TensorFile
from vit_export.errors import CheckpointError
from vit_export.model.pos_embed import resample_pos_embed
from vit_export.model.vit import VisionTransformer
from vit_export.variants import ViTConfig


class _EmptyOnMeta(TorchFunctionMode):
    """Layers made under this mode have shapes but no memory, and draw no random numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.zeros):
            options["device"] = "meta"
        return func(*args, **options)


def blank_model(config: ViTConfig) -> VisionTransformer:
    """A model in evaluation mode whose layers have no data yet."""
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        return VisionTransformer(config).eval()


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What the tensors of a file would become, without their data.

    Attributes:
        converted: Our name to a meta tensor of our shape.
        failed: Our name to the reason why its sources cannot be converted.
    """

    converted: Mapping[str, Tensor]
    failed: Mapping[str, str]


def convert_shapes(file: TensorFile, binding: Binding) -> Shapes:
    """Run every conversion on shapes alone."""
    converted: dict[str, Tensor] = {}
    failed: dict[str, str] = {}
    for step in binding.steps:
        sources = [file.tensors[name] for name in step.sources]
        wrong = [_kind(tensor) for tensor in sources if not tensor.is_floating_point()]
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


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_shapes(
    shapes: Shapes, binding: Binding, *, config: ViTConfig, dropped: Iterable[str], source: str
) -> None:
    """Raise one error with every tensor that does not fit.

    Args:
        shapes: What the file's tensors would become.
        binding: Where they come from.
        config: The architecture that the file has.
        dropped: Our names that the model wanted does not take from the file.
        source: Name of the file, for messages.
    """
    expected = blank_model(config).state_dict()
    origin = {step.target: step.sources for step in binding.steps}
    skip = set(dropped)
    lines = [f"  ! {name}: {why}" for name, why in shapes.failed.items() if name not in skip]
    missing = []
    for name, tensor in expected.items():
        if name in skip or name in shapes.failed:
            continue
        found = shapes.converted.get(name)
        if found is None:
            lacking = binding.incomplete.get(name)
            told = f" (lacks {', '.join(lacking)})" if lacking else ""
            missing.append(f"  - {name}: in the model, not in the checkpoint{told}")
        elif found.shape != tensor.shape:
            told = "" if origin[name] == (name,) else f" (from {', '.join(origin[name])})"
            lines.append(
                f"  ! {name}: checkpoint {tuple(found.shape)}, model {tuple(tensor.shape)}{told}"
            )
    foreign = [
        ", ".join(origin[name])
        for name in shapes.converted
        if name not in expected and name not in skip
    ]
    unexpected = [
        f"  + {name}: in the checkpoint, not in the model"
        for name in (*foreign, *binding.unexpected)
    ]
    lines += missing + unexpected
    if lines:
        count = "1 tensor does" if len(lines) == 1 else f"{len(lines)} tensors do"
        raise CheckpointError(
            f"cannot load {source} into {config.variant!r}: {count} not fit\n"
            + "\n".join(lines)
            + f"\n  try: {_advice(missing, unexpected)}"
        )


def _advice(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    if missing and all(line.startswith(("  - head", "  - pre_logits")) for line in missing):
        return "--reset-head with --num-classes N, or --num-classes 0 to export features"
    if missing and unexpected:
        return "--layout NAME if the names were taken for another library's"
    if missing:
        return "the whole file: this one is not complete"
    if unexpected:
        return "--module pkg:factory if the model has parts of its own"
    return "--variant NAME of the model that these weights were saved from"


@dataclass
class Account:
    """What became of the tensors, gathered while the model is filled."""

    used: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def assemble(
    file: TensorFile,
    steps: Sequence[Step],
    *,
    source_config: ViTConfig,
    config: ViTConfig,
    source: str,
) -> tuple[VisionTransformer, Account]:
    """Build the model and fill it, one tensor in memory at a time.

    Args:
        file: Where the data are.
        steps: What to take; a tensor of the model without a step starts at zero.
        source_config: The architecture that the file has.
        config: The one wanted: the same, or another image size or head.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: NaN or Inf in a tensor.
    """
    model, account = blank_model(config), Account()
    kinds: Counter[str] = Counter()
    not_finite: list[str] = []
    for step in steps:
        data = [file.read(name) for name in step.sources]
        for tensor in data:
            if tensor.dtype != torch.float32:
                kinds[f"{_kind(tensor)} -> float32"] += 1
        value = step.conversion.apply(*data)
        if step.conversion.label:
            kinds[step.conversion.label] += len(data)
        if step.target == "pos_embed" and source_config.grid_hw != config.grid_hw:
            value = _other_grid(value, source_config, config, account)
            account.resampled += step.sources
        else:
            account.used += step.sources
        if not _fill(model, step.target, value):
            not_finite += step.sources
    if not_finite:
        raise CheckpointError(
            f"{source} was not loaded: NaN or Inf in {len(not_finite)} tensors: "
            f"{', '.join(not_finite)}. The training diverged or the file is damaged; "
            "take an earlier checkpoint"
        )
    account.changes += [f"{kind}: {count} tensors" for kind, count in kinds.items()]
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            _fill(model, name, torch.zeros(tensor.shape))
            account.reinitialised.append(name)
    if account.reinitialised:
        account.changes.append(f"re-initialised to zero: {', '.join(account.reinitialised)}")
    return model, account


def _other_grid(
    value: Tensor, source_config: ViTConfig, config: ViTConfig, account: Account
) -> Tensor:
    old, new = ("x".join(map(str, c.grid_hw)) for c in (source_config, config))
    account.changes.append(f"pos_embed resampled: {old} -> {new} patches, bicubic with antialias")
    return resample_pos_embed(
        value,
        source=source_config.grid_hw,
        target=config.grid_hw,
        num_prefix_tokens=config.num_prefix_tokens,
    )


def _fill(model: nn.Module, name: str, value: Tensor) -> bool:
    """Give a tensor of the model its data; False when they are not finite."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    data = torch.empty(value.shape, dtype=torch.float32)
    data.copy_(value)
    if attribute in owner._parameters:
        setattr(owner, attribute, nn.Parameter(data))
    else:
        setattr(owner, attribute, data)
    return bool(torch.isfinite(data).all())
