"""Find one network among the tensors of a file, also behind a prefix that its trainer added."""

import dataclasses
import re
from collections.abc import Mapping

from torch import Tensor

from vit_export.checkpoint.layouts import LAYOUTS, recognise
from vit_export.checkpoint.layouts.rules import Layout
from vit_export.checkpoint.metadata import MODULE_HINT
from vit_export.checkpoint.tensor_files import TensorFile
from vit_export.errors import CheckpointError

# of several networks that are alike; averaged copies first, as timm's loader takes them
PREFERRED = ("model_ema.", "module_ema.", "ema_model.", "ema.", "teacher.", "target_encoder.")
_LORA = re.compile(r"\.lora_[AB]\b|\.base_layer\.")


def without_prefix(file: TensorFile) -> TensorFile:
    """Return the tensors of the network in a file under the names that its library gives them.

    A prefix such as `backbone.` or `student.module.` is removed where the names behind it are
    those of a known layout; all other tensors are listed as not used.
    """
    _check_whole(file)
    empty = tuple(name for name, tensor in file.tensors.items() if not tensor.numel())
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in empty}
    file = dataclasses.replace(file, tensors=tensors, aside=(*file.aside, *empty))
    file = without_scan(file)
    names = list(file.tensors)
    if recognise(names, file.metadata) is not None:
        return file
    networks = {}
    for prefix in _prefixes(names):
        inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if recognise(inner) is not None:
            networks[prefix] = inner
    if not networks:
        return file
    prefix = _choose(networks, file)
    others = tuple(name for name in names if not name.startswith(prefix))
    if projection := [name for name in others if name.startswith("visual.head.")]:
        raise CheckpointError(
            f"{file.path}: {projection[0]} projects the features of {prefix}*, which is not "
            "supported for OpenCLIP models around a network of timm",
            hint=MODULE_HINT,
        )
    note = f"{prefix}*; {len(others)} other tensors are not used"
    return dataclasses.replace(
        file,
        tensors={
            n.removeprefix(prefix): t for n, t in file.tensors.items() if n.startswith(prefix)
        },
        read=lambda name: file.read(prefix + name),
        aside=(*others, *file.aside),
        notes={**file.notes, "tensors": note},
    )


def without_scan(file: TensorFile) -> TensorFile:
    """Return the blocks of a scanned model of big_vision, stacked along an axis, one by one."""
    stacked = re.compile(r"(.*/)?encoderblock/.+")
    tensors, origin = dict[str, Tensor](), dict[str, tuple[str, int | None]]()
    for name, tensor in file.tensors.items():
        depth = tensor.shape[0] if stacked.fullmatch(name) and tensor.ndim else None
        for n in range(depth) if depth is not None else (None,):
            of_block = name if n is None else name.replace("encoderblock/", f"encoderblock_{n}/")
            tensors[of_block] = tensor if n is None else tensor[n]
            origin[of_block] = name, n

    def read(name: str) -> Tensor:
        source, n = origin[name]
        return file.read(source) if n is None else file.read(source)[n]

    return dataclasses.replace(file, tensors=tensors, read=read)


def _check_whole(file: TensorFile) -> None:
    """Raise CheckpointError where weights are not those of a whole network."""
    lora = [name for name in file.tensors if _LORA.search(name)]
    if lora:
        raise CheckpointError(
            f"{file.path} holds LoRA adapters that are not merged into the weights, e.g. {lora[0]}",
            hint="merge them and save the result: "
            "model.merge_and_unload().save_pretrained('merged')",
        )
    empty = [name for name, tensor in file.tensors.items() if not tensor.numel()]
    if len(empty) * 2 > len(file.tensors):
        raise CheckpointError(
            f"{file.path}: {len(empty)} of {len(file.tensors)} tensors are empty, e.g. {empty[0]}: "
            "their data are in the files of other processes (DeepSpeed ZeRO-3)",
            hint="python zero_to_fp32.py CHECKPOINT_FOLDER OUTPUT joins them",
        )


def _prefixes(names: list[str]) -> list[str]:
    """Whatever stands before a name of the patch embedding's weight in any layout."""
    found: dict[str, None] = {}
    for layout in LAYOUTS.values():
        anchor = _anchor(layout)
        for name in names:
            if match := anchor.fullmatch(name):
                found[match["outer"]] = None
    return [prefix for prefix in found if prefix]


def _anchor(layout: Layout) -> re.Pattern[str]:
    rules = (rule for rule in layout.rules if rule.target.startswith("patch_embed.proj."))
    template = next(iter(rules)).sources[0].replace("{p}", "weight")
    return re.compile(rf"(?P<outer>(?:.*?[./])??){layout.prefix}{re.escape(template)}")


def _choose(networks: Mapping[str, list[str]], file: TensorFile) -> str:
    """The prefix of the network to load, of several that are alike."""
    if len(networks) == 1:
        return next(iter(networks))
    for preferred in PREFERRED:
        if chosen := [prefix for prefix in networks if prefix.startswith(preferred)]:
            return chosen[0]
    raise CheckpointError(
        f"{file.path} holds several networks, under the prefixes {', '.join(networks)}",
        hint="save the tensors of one of them to a file of their own, and load that",
    )
