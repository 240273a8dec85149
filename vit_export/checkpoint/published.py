"""Image preparation of published files that have nothing beside them, recognised by their hash.

Nothing in a file of torchvision or DeiT says how its images are prepared, and files with the same
shapes differ. Their makers put the first digits of the file's SHA-256 in its name.
"""

from typing import Any

from vit_export.variants import IMAGENET_MEAN, IMAGENET_STD


def _torchvision(resized: int, cropped: int, interpolation: str) -> dict[str, Any]:
    crop_pct = cropped / resized
    return {**_IMAGENET, "crop_pct": crop_pct, "interpolation": interpolation}


_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_DEIT = {**_IMAGENET, "crop_pct": 0.9, "interpolation": "bicubic"}
_DEIT_384 = {**_DEIT, "crop_pct": 1.0}

_PREPARATION: dict[str, dict[str, Any]] = {
    "vit_b_16-c867db91.pth": _torchvision(256, 224, "bilinear"),
    "vit_b_16_swag-9ac1b537.pth": _torchvision(384, 384, "bicubic"),
    "vit_b_16_lc_swag-4e70ced5.pth": _torchvision(224, 224, "bicubic"),
    "vit_b_32-d86f8d99.pth": _torchvision(256, 224, "bilinear"),
    "vit_l_16-852ce7e3.pth": _torchvision(242, 224, "bilinear"),
    "vit_l_16_swag-4f3808c9.pth": _torchvision(512, 512, "bicubic"),
    "vit_l_16_lc_swag-4d563306.pth": _torchvision(224, 224, "bicubic"),
    "vit_l_32-c7638314.pth": _torchvision(256, 224, "bilinear"),
    "vit_h_14_swag-80465313.pth": _torchvision(518, 518, "bicubic"),
    "vit_h_14_lc_swag-c1eb923e.pth": _torchvision(224, 224, "bicubic"),
    "deit_tiny_patch16_224-a1311bcf.pth": _DEIT,
    "deit_small_patch16_224-cd65a155.pth": _DEIT,
    "deit_base_patch16_224-b5f2ef4d.pth": _DEIT,
    "deit_base_patch16_384-8de9b5d1.pth": _DEIT_384,
    "deit_tiny_distilled_patch16_224-b40b3cf7.pth": _DEIT,
    "deit_small_distilled_patch16_224-649709d9.pth": _DEIT,
    "deit_base_distilled_patch16_224-df68dfff.pth": _DEIT,
    "deit_base_distilled_patch16_384-d0272ac0.pth": _DEIT_384,
}


def published_preparation(sha256: str) -> dict[str, dict[str, Any]]:
    """Return config fields of the published file with this hash, by its name; else nothing."""
    return {
        name: fields
        for name, fields in _PREPARATION.items()
        if sha256.startswith(name.removesuffix(".pth").rpartition("-")[2])
    }
