"""What is in a file, what is known by name, and what was predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.cli.report.gates import VERDICT, certificate
from vit_export.cli.report.tables import pairs, size, table
from vit_export.variants import ViTConfig

if TYPE_CHECKING:
    from vit_export.runtime.model import Prediction


def predictions(found: Sequence[tuple[str, Sequence[Prediction]]]) -> str:
    """Images and their likeliest classes."""
    lines = []
    for image, top in found:
        lines.append(image)
        lines += [f"  {100 * p.score:6.2f} %  {p.label}" for p in top]
    return "\n".join(lines)


def variants(configs: Iterable[ViTConfig]) -> str:
    """The table of variants."""
    headers = ("variant", "alias", "px", "patch", "width", "depth", "heads", "classes", "params")
    rows = [
        (c.variant, c.alias, c.image_hw[0], c.patch_size, c.embed_dim, c.depth, c.num_heads,
         c.num_classes, f"{c.num_params / 1e6:.1f}M")
        for c in configs
    ]  # fmt: skip
    return table(headers, rows)


def described(file: OnnxFile) -> str:
    """What is in an ONNX file: signature, operators, weights, and the manifest if it has one."""
    opsets = ", ".join(f"{name or 'ai.onnx'} {version}" for name, version in file.opsets.items())
    beside = f", weights in {file.external_files[0].name}" if file.external_files else ""
    rows = [
        ("file", f"{file.path}  {size(file.size_bytes)}{beside}"),
        ("made by", file.producer or "unknown"),
        ("opset", f"{opsets} (IR version {file.ir_version})"),
        *(("input", str(spec)) for spec in file.inputs),
        *(("output", str(spec)) for spec in file.outputs),
        ("weights", f"{len(file.initializers)} tensors, {size(file.weights_bytes)}"),
        (
            "nodes",
            f"{len(file.nodes)}: " + ", ".join(f"{n} {op}" for op, n in file.op_counts.items()),
        ),
    ]
    manifest = file.manifest
    lines = [pairs(rows)]
    if manifest is None:
        others = ", ".join(f"{key}={value[:40]}" for key, value in file.metadata.items())
        lines.append("no vit-export manifest: how to prepare images, labels and measured error "
                     f"are unknown{'; other metadata: ' + others if others else ''}")  # fmt: skip
    else:
        lines.append(_manifest(manifest))
    return "\n".join(lines)


def _manifest(manifest: Manifest) -> str:
    weights = manifest.weights
    prepare = manifest.preprocess
    rows = [
        ("variant", f"{manifest.variant}, {manifest.precision}"),
        (
            "weights of",
            ", ".join(filter(None, (weights.source, weights.layout, weights.sha256[:12]))),
        ),
        *(("", change) for change in weights.changes[:10]),
        ("labels", _labels(manifest.labels)),
    ]
    if prepare is not None:
        height, width = prepare.size
        rows.append((
            "images",
            f"{prepare.color or 'raw'} {height}x{width} px, {prepare.interpolation}, crop_pct "
            f"{prepare.crop_pct:g} ({prepare.crop_mode}), mean {prepare.mean}, std {prepare.std}",
        ))  # fmt: skip
    rows.append(("made with", ", ".join(f"{k} {v}" for k, v in manifest.toolchain.items())))
    rows.append(("gate", VERDICT[manifest.passed]))
    return "\n".join([pairs(rows), "", certificate(manifest.certificate)])


def _labels(labels: Sequence[str]) -> str:
    if not labels:
        return "none in the file"
    return f"{len(labels)}: {', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}"


def golden(path: Path, found: Golden) -> str:
    """What is in a golden file."""
    inputs = "images" if found.images is not None else ", ".join(found.inputs)
    outputs = [f"{name} {values.shape}, torch float32 is off by {found.e32[name]:.3g}"
               for name, values in found.outputs.items()]  # fmt: skip
    shape = "" if found.images is None else f" uint8 {found.images.shape}"
    blocks = "" if found.blocks is None else ", ".join(found.blocks.names)
    return pairs([
        ("golden file", str(path)),
        ("inputs", inputs + shape),
        *(("output", line) for line in outputs),
        ("blocks", blocks or "not recorded"),
    ])  # fmt: skip
