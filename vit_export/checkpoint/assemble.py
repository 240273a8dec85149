"""Fill a model with the tensors of a file, after the shapes of all of them were checked."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor

from vit_export.checkpoint.layouts.rules import Binding, Rule
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
        if wrong := [_dtype(t) for t in sources if not t.is_floating_point()]:
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
    unexpected += [
        f"  + {name}: not in the model, and incomplete in the checkpoint (lacks "
        f"{', '.join(lacking)})"
        for name, lacking in binding.incomplete.items()
        if name not in expected and name not in dropped
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
    return {
        (True, True): "--layout NAME, if these are the names of another library",
        (True, False): "load the whole file: this one is not complete",
        (False, True): "--module package.module:factory, if the model has parts of its own",
        (False, False): "--variant NAME of the model that these weights were saved from",
    }[bool(missing), bool(unexpected)]


def changed(file: TensorFile, steps: Sequence[Rule]) -> list[str]:
    """What the steps do to the tensors of a file, other than to copy them."""
    counts: Counter[str] = Counter()
    for step in steps:
        dtypes = [_dtype(file.tensors[name]) for name in step.sources]
        counts.update(f"{dtype} -> float32" for dtype in dtypes if dtype != "float32")
        if step.conversion.label:
            counts[step.conversion.label] += len(dtypes)
    return [f"{what}: {count} tensors" for what, count in counts.items()]


def fill(
    model: VisionTransformer, file: TensorFile, steps: Sequence[Rule], grid_hw: Sequence[int]
) -> None:
    """Fill a blank model, with one tensor of the file in memory at a time.

    Tensors of the model that no step fills become zero. `grid_hw` is the grid of patches that the
    file's position embedding was trained for.
    """
    config, not_finite = model.config, list[str]()
    state, filled = model.state_dict(), {step.target for step in steps}
    empty = {n: t for n, t in state.items() if t.is_meta and n not in filled}
    state |= {name: torch.zeros(tensor.shape) for name, tensor in empty.items()}
    for step in steps:
        value = step.conversion.apply(*(file.read(name) for name in step.sources))
        if step.target == "pos_embed":
            value = resample_pos_embed(value, source=grid_hw, config=config)
        state[step.target] = torch.empty(value.shape, dtype=torch.float32).copy_(value)
        filled_in = state[step.target]
        # a finite sum proves it in a tenth of the time
        if not (filled_in.sum().isfinite() or filled_in.isfinite().all()):
            not_finite += step.sources
    if not_finite:
        raise CheckpointError(
            f"{file.path} was not loaded: NaN or Inf in {len(not_finite)} tensors: "
            f"{', '.join(not_finite)}. The training diverged, or the file is damaged",
            hint="load an earlier checkpoint",
        )
    model.load_state_dict(state, assign=True)
