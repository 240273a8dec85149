"""Contents of files, and the table of variants, as text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vit_export.artifact.engine_sidecar import Profile, Sidecar
from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.cli.report.gates import VERDICT, certificate_text, error_text
from vit_export.cli.report.tables import pairs, size, table
from vit_export.quantization.activation_ranges import Ranges
from vit_export.variants import ViTConfig, weights_license


def variants_text(families: Mapping[str, Iterable[ViTConfig]]) -> str:
    """Return a table of variants by family, with the licence of their published weights."""
    headers = (
        *("family", "variant", "alias", "px", "patch", "width", "depth", "outputs", "params"),
        "licence of weights",
    )
    rows = [
        ("" if number else family, c.variant, c.alias, c.image_hw[0], c.patch_size, c.embed_dim,
         c.depth, f"{c.num_classes or c.num_features} {'classes' if c.num_classes else 'features'}",
         f"{c.num_params / 1e6:.1f}M", weights_license(c) or "no weights")
        for family, configs in families.items()
        for number, c in enumerate(configs)
    ]  # fmt: skip
    return table(headers, rows)


def onnx_file_text(file: OnnxFile) -> str:
    """Return the signature, operators, weights and manifest of an ONNX file."""
    opsets = ", ".join(f"{name or 'ai.onnx'} {version}" for name, version in file.opsets.items())
    beside = f", weights in {file.external_files[0].name}" if file.external_files else ""
    counts = ", ".join(f"{count} {op}" for op, count in file.op_counts.items())
    rows = [
        ("file", f"{file.path}  {size(file.size_bytes)}{beside}"),
        ("made by", file.producer or "unknown"),
        ("opset", f"{opsets} (IR version {file.ir_version})"),
        *(("input", str(spec)) for spec in file.inputs),
        *(("output", str(spec)) for spec in file.outputs),
        ("weights", f"{len(file.initializers)} tensors, {size(file.weights_bytes)}"),
        ("nodes", f"{len(file.nodes)}: {counts}"),
    ]
    if file.manifest is not None:
        rows += _manifest_rows(file.manifest)
        return "\n".join([pairs(rows), "", certificate_text(file.manifest.certificate)])
    others = ", ".join(f"{key}={value[:40]}" for key, value in file.metadata.items())
    return (
        f"{pairs(rows)}\nno vit-export manifest: how to prepare images, labels and measured error "
        f"are unknown{'; other metadata: ' + others if others else ''}"
    )


def _manifest_rows(manifest: Manifest) -> list[tuple[str, str]]:
    weights, preprocess, labels = manifest.weights, manifest.preprocess, manifest.labels
    first_labels = ", ".join([*labels[:5], "..."] if len(labels) > 5 else labels)
    known = (weights.source, weights.layout, weights.sha256[:12], weights.license)
    origin = ", ".join(filter(None, known))
    rows = [
        ("variant", f"{manifest.variant}, {manifest.precision}"),
        ("weights of", origin),
        *(("", change) for change in weights.changes[:10]),
        ("labels", f"{len(labels)}: {first_labels}" if labels else "none in the file"),
    ]
    if preprocess is not None:
        height, width = preprocess.size
        rows.append((
            "images",
            f"{preprocess.color or 'raw'} {height}x{width} px, {preprocess.interpolation}, "
            f"crop_pct {preprocess.crop_pct:g} ({preprocess.crop_mode}), mean {preprocess.mean}, "
            f"std {preprocess.std}" + ("" if preprocess.known else " (not known: placeholders)"),
        ))  # fmt: skip
    if manifest.embedded:
        how = "matrix products" if manifest.resize == "matmul" else "Resize nodes"
        rows.append(("prepared", f"in the graph, by {how}: takes uint8 images of any size"))
    if (merging := manifest.token_merging) is not None:
        rows.append((
            "merges tokens",
            f"{merging.per_block} pairs a block, {merging.tokens[0]} tokens become "
            f"{merging.tokens[-1]}: its outputs are not those of the full model",
        ))  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in manifest.toolchain.items())
    return [*rows, ("made with", versions), ("gate", VERDICT[manifest.passed])]


def ranges_text(path: Path, ranges: Ranges) -> str:
    """Return the range of each activation tensor, and the magnitude that calibration clips at."""
    headers = ("tensor", "smallest", "largest", "99.99 % of magnitudes below")
    rows = [
        (name, found.smallest, found.largest, found.percentile(99.99))
        for name, found in ranges.tensors.items()
    ]
    about = [("activation ranges", str(path)), ("measured on", f"{ranges.images} images")]
    return "\n".join([pairs(about), "", table(headers, rows)])


def golden_text(path: Path, golden: Golden) -> str:
    """Return the inputs, outputs and blocks of a golden file."""
    images = golden.images
    inputs = ", ".join(golden.inputs) if images is None else f"images uint8 {images.shape}"
    rows = [
        ("golden file", str(path)),
        ("inputs", inputs),
        *(
            ("output", f"{name} {values.shape}, error of torch float32 {golden.e32[name]:.3g}")
            for name, values in golden.outputs.items()
        ),
        ("blocks", "not recorded" if golden.blocks is None else ", ".join(golden.blocks.names)),
    ]
    return pairs(rows)


def engine_file_text(path: Path, sidecar: Sidecar) -> str:
    """Return the sidecar of an engine file: its origin, its GPU, its shapes, its certificate."""
    manifest = sidecar.manifest
    rows = [
        ("file", f"{path}  {size(sidecar.plan_bytes)}"),
        ("engine of", f"{sidecar.backend} {sidecar.version}"),
        ("runs on", f"compute capability {', '.join(sidecar.compute_capabilities)}"),
        ("built on", str(sidecar.gpu) if sidecar.gpu is not None else "a machine without a GPU"),
        *([("device", str(sidecar.device))] if sidecar.device is not None else []),
        *(("input", str(spec)) for spec in manifest.inputs),
        *(("output", str(spec)) for spec in manifest.outputs),
        *(("profile", _profile_text(profile)) for profile in sidecar.profiles),
        ("built from", f"{sidecar.source} ({sidecar.source_sha256[:12]})"),
        ("options", ", ".join(f"{name} {value}" for name, value in sidecar.options.items())),
        ("layers", product_counts(sidecar)),
        ("plan", str(sidecar.proof.get("plan", ""))),
        *(("warning", str(warning)) for warning in sidecar.proof.get("warnings", ())),
        ("variant", f"{manifest.variant}, {manifest.precision}"),
        ("weights of", manifest.weights.source),
        ("rebuild", sidecar.rebuild_command(path)),
        ("gate", engine_verdict(sidecar)),
        *(("passed on", str(check.gpu)) for check in sidecar.checks),
    ]
    return "\n".join([pairs(rows), "", certificate_text(manifest.certificate)])


def _profile_text(profile: Profile) -> str:
    def shape(sizes: Sequence[int]) -> str:
        return "x".join(map(str, sizes))

    return ", ".join(
        f"{name} {shape(ranges.min)} to {shape(ranges.max)}, fastest at {shape(ranges.opt)}"
        for name, ranges in profile.items()
    )


def product_counts(sidecar: Sidecar) -> str:
    """Return how many matrix products of an engine have each precision."""
    counts = sidecar.proof.get("network", {})
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def engine_verdict(sidecar: Sidecar) -> str:
    """Return whether an engine passed its gate and its error, or why it was not measured."""
    stage = sidecar.measured
    reason = f": {stage.reason}" if stage.reason else ""
    error = stage.max_abs is not None and error_text(stage, sidecar.manifest.precision)
    return f"{VERDICT[stage.passed]}{reason}{f'  {error}' if error else ''}"
