"""A tiny Vision Transformer, exported once, and real photographs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import sklearn.datasets
import torch
from torch import nn

from vit_export.artifact.engine_sidecar import Check, Gpu, Range, Sidecar
from vit_export.artifact.manifest import Manifest, Stage, TensorSpec, Weights
from vit_export.model.vit import VisionTransformer, create_model
from vit_export.pipeline.export import ExportResult, export
from vit_export.pipeline.settings import ExportSettings
from vit_export.variants import ViTConfig

TINY = ViTConfig(
    variant="vit_tiny_test", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2,
    num_classes=10,
)  # fmt: skip

# A shell that starts tests in the background has them ignore Ctrl-C, and so what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")


def perturb(module: nn.Module, *, seed: int = 1, scale: float = 0.05) -> nn.Module:
    """Move every parameter: a fresh ViT has zero biases, and what adds zero goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="session")
def tiny_config() -> ViTConfig:
    """32 px, 16 patches, three blocks of width 32."""
    return TINY


@pytest.fixture(scope="session")
def make_model() -> Callable[..., VisionTransformer]:
    """Builds a perturbed model of the tiny config, with fields changed, as exports write it."""

    def make(seed: int = 0, **fields: object) -> VisionTransformer:
        model = create_model(TINY.replace(fields), seed=seed).set_attention("decomposed")
        perturb(model)
        return model

    return make


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., VisionTransformer]
) -> Callable[..., ExportResult]:
    """Exports the tiny model once per config and settings; tests must not change the files.

    `exported(distilled=True)` changes a field of the config, `exported(settings=...)` is exported
    with other settings. A test that changes a file copies it first.
    """
    made: dict[str, ExportResult] = {}

    def export_once(
        seed: int = 0, settings: ExportSettings = ExportSettings(), **fields: object
    ) -> ExportResult:
        key = repr((seed, settings, sorted(fields.items())))
        if key not in made:
            path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
            made[key] = export(make_model(seed, **fields), path, settings=settings)
        return made[key]

    return export_once


@pytest.fixture(scope="session")
def tiny_export(exported: Callable[..., ExportResult]) -> ExportResult:
    """The tiny model as an ONNX file with a golden file; tests must not change them."""
    return exported(settings=ExportSettings(labels=tuple(f"name {i}" for i in range(10))))


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Two real photographs, 427 x 640 px."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


UNMEASURED = Stage(
    name="onnx -> tensorrt engine", provider="tensorrt", samples=8, passed=None, reasons=("no GPU",)
)


@pytest.fixture(scope="session")
def make_sidecar() -> Callable[..., Sidecar]:
    """Makes the sidecar of an FP16 engine of the tiny model for an L4, with fields changed."""

    def make(**fields: object) -> Sidecar:
        """Of an engine that an L4 runs."""
        shapes = Range((1, 3, 32, 32), (8, 3, 32, 32), (32, 3, 32, 32))
        values = {
            "manifest": Manifest(
                variant="tiny",
                weights=Weights(source="random (seed 0)"),
                precision="fp16",
                opset=20,
                inputs=(TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32)),),
                outputs=(TensorSpec("logits", "float32", ("batch_size", 10)),),
                certificate=(UNMEASURED,),
            ),
            "backend": "tensorrt",
            "version": "11.4.0.106",
            "compute_capabilities": ("8.9",),
            "gpu": L4,
            "profiles": ({"pixel_values": shapes},),
            "plan_sha256": "ab" * 32,
            "plan_bytes": 3,
            "source": "my model.onnx",
            "source_sha256": "cd" * 32,
            "options": {"precision": "fp16"},
            "rebuild": ("--backend", "tensorrt", "--precision", "fp16"),
            "checks": (Check(gpu=L4, plan_sha256="ab" * 32),),
            **fields,
        }
        return Sidecar(**values)  # type: ignore[arg-type]

    return make
