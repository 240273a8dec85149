"""All layouts, and the choice of the one that fits a file."""

from __future__ import annotations

from collections.abc import Container, Iterable

from vit_export.checkpoint.layouts.huggingface import HUGGING_FACE
from vit_export.checkpoint.layouts.jax import BIG_VISION, GOOGLE_JAX
from vit_export.checkpoint.layouts.notebook import TRANSFORMER_ENCODER
from vit_export.checkpoint.layouts.rules import Binding, Layout, bind
from vit_export.checkpoint.layouts.timm import TIMM, VIT_EXPORT
from vit_export.checkpoint.layouts.torchvision import TORCHVISION

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        VIT_EXPORT, TIMM, HUGGING_FACE, TORCHVISION, GOOGLE_JAX, BIG_VISION, TRANSFORMER_ENCODER,
    )
}  # fmt: skip


def recognise(names: Iterable[str], metadata: Container[str] = ()) -> tuple[Layout, Binding] | None:
    """Return the layout that matches most names, or None where none matches half of them.

    Args:
        names: Names of the tensors.
        metadata: Keys of the file's metadata; the key "vit_export" marks our own layout.
    """
    names = list(names)
    if VIT_EXPORT.name in metadata:
        return VIT_EXPORT, bind(VIT_EXPORT, names)
    candidates = [layout for layout in LAYOUTS.values() if layout is not VIT_EXPORT]
    bound = [(layout, bind(layout, names)) for layout in candidates]
    layout, binding = min(bound, key=lambda pair: len(pair[1].unexpected))
    return (layout, binding) if len(binding.unexpected) * 2 < len(names) else None
