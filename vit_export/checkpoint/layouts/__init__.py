"""Tensor names of the libraries that write Vision Transformer checkpoints.

To add a library, read `torchvision.py` (the shortest table) and `rules.py` (what a table may say),
write a table in a new file, add it to `LAYOUTS` below, and compare a tiny model of the library with
vit-export's in `tests/checkpoint/layouts/`. Nothing else has to change.
"""

from collections.abc import Container, Iterable

from vit_export.checkpoint.layouts.huggingface import HUGGING_FACE
from vit_export.checkpoint.layouts.huggingface_clip import HUGGINGFACE_CLIP, HUGGINGFACE_SIGLIP
from vit_export.checkpoint.layouts.huggingface_dino import HUGGINGFACE_DINOV2, HUGGINGFACE_DINOV3
from vit_export.checkpoint.layouts.jax import BIG_VISION, GOOGLE_JAX
from vit_export.checkpoint.layouts.meta_dino import META_DINOV2, META_DINOV3
from vit_export.checkpoint.layouts.notebook import TRANSFORMER_ENCODER
from vit_export.checkpoint.layouts.openclip import OPENCLIP
from vit_export.checkpoint.layouts.rules import Layout, bind
from vit_export.checkpoint.layouts.timm import TIMM, VIT_EXPORT
from vit_export.checkpoint.layouts.torchvision import TORCHVISION

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        VIT_EXPORT, META_DINOV2, META_DINOV3, TIMM, HUGGING_FACE, HUGGINGFACE_DINOV2,
        HUGGINGFACE_DINOV3, HUGGINGFACE_CLIP, HUGGINGFACE_SIGLIP, OPENCLIP, TORCHVISION,
        GOOGLE_JAX, BIG_VISION, TRANSFORMER_ENCODER,
    )
}  # fmt: skip


def recognise(names: Iterable[str], metadata: Container[str] = ()) -> Layout | None:
    """Return the layout that matches most names, or None where none matches half of them.

    The key "vit_export" in the file's metadata marks our own layout.
    """
    names = list(names)
    if VIT_EXPORT.name in metadata:
        return VIT_EXPORT
    others = [
        layout
        for layout in LAYOUTS.values()
        if layout is not VIT_EXPORT and all(layout.has(form, names) for form in layout.required)
    ]
    unmatched = [len(bind(layout, names).unexpected) for layout in others]
    least = min(unmatched)
    return others[unmatched.index(least)] if least * 2 < len(names) else None
