"""Fill a model with the tensors of a file, after the shapes of all of them were checked."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

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


def convert_shapes(file: TensorFile, binding: Binding) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Run every conversion on meta tensors: the results by our names, and why others fail."""
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
    return converted, failed


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_shapes(
    converted: Mapping[str, Tensor],
    failed: Mapping[str, str],
    binding: Binding,
    *,
    config: ViTConfig,
    dropped: Set[str],  # names in the model that need not fit
    source: str,
) -> None:
    """Raise one CheckpointError with every tensor that is missing, unexpected or of other shape."""
    expected = blank_model(config).state_dict()
    sources = {step.target: ", ".join(step.sources) for step in binding.steps}
    wrong = [f"  ! {name}: {why}" for name, why in failed.items() if name not in dropped]
    missing = []
    for name, tensor in expected.items():
        if name in dropped or name in failed:
            continue
        if name not in converted:
            lacking = binding.incomplete.get(name)
            detail = f" (lacks {', '.join(lacking)})" if lacking else ""
            missing.append(f"  - {name}: in the model, not in the checkpoint{detail}")
            continue
        found, wanted = tuple(converted[name].shape), tuple(tensor.shape)
        if found != wanted:
            detail = f" (from {sources[name]})" if sources[name] != name else ""
            wrong.append(f"  ! {name}: checkpoint {found}, model {wanted}{detail}")
    surplus = [sources[n] for n in converted if n not in expected and n not in dropped]
    unexpected = [
        f"  + {name}: in the checkpoint, not in the model"
        for name in (*surplus, *binding.unexpected)
    ]
    if lines := [*wrong, *missing, *unexpected]:
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
    """
    account, state = Account(), dict[str, Tensor]()
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
        copy = torch.empty(value.shape, dtype=torch.float32)  # apart from the file's memory
        state[step.target] = copy.copy_(value)
        if not copy.isfinite().all():
            not_finite += step.sources
    if not_finite:
        raise CheckpointError(
            f"{file.path} was not loaded: NaN or Inf in {len(not_finite)} tensors: "
            f"{', '.join(not_finite)}. The training diverged, or the file is damaged",
            hint="load an earlier checkpoint",
        )
    account.changes += [f"{what}: {count} tensors" for what, count in conversions.items()]
    model = blank_model(config)
    for name, tensor in model.state_dict().items():
        if name not in state and tensor.is_meta:
            account.reinitialised.append(name)
        state.setdefault(name, torch.zeros(tensor.shape) if tensor.is_meta else tensor)
    if account.reinitialised:
        account.changes.append(f"re-initialised to zero: {', '.join(account.reinitialised)}")
    model.load_state_dict(state, assign=True)
    return model, account
