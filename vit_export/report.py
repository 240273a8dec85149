"""Results as text for people and as JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vit_export.golden import Golden
from vit_export.manifest import Hop, Manifest
from vit_export.onnxfile import OnnxFile
from vit_export.validate import Comparison
from vit_export.variants import ViTConfig

if TYPE_CHECKING:
    from vit_export.model.checkpoint import LoadReport
    from vit_export.model.finetune import EpochProgress
    from vit_export.pipeline import ExportResult
    from vit_export.runtime.classifier import Prediction
    from vit_export.training import Trained


def to_json(value: Any) -> str:
    """One line of JSON; what is not finite becomes null, so that every parser takes it."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns under headers; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        all(_is_number(row[i]) for row in cells) and cells != [] for i in range(len(headers))
    ]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        parts = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return (
        text == "-"
        or text.replace(".", "")
        .replace("-", "")
        .replace("e", "")
        .replace("+", "")
        .replace("%", "")
        .isdigit()
    )


def size(nbytes: int) -> str:
    """Bytes as people read them, e.g. `"346.3 MB"`."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes = nbytes / 1000  # type: ignore[assignment]
    return f"{nbytes:.2f} GB"


VERDICT = {True: "passed", False: "FAILED", None: "not measured"}


def certificate(hops: Sequence[Hop]) -> str:
    """Every measurement of every hop, as a table, and what could not be measured."""
    rows = [
        (hop.hop, m.output, m.batch, m.max_abs, m.tolerance, f"{m.cosine:.9f}", _verdict(m.passed))
        for hop in hops
        for m in hop.measurements
    ]
    headers = ("hop", "output", "batch", "max_abs", "tolerance", "cosine", "")
    lines = [table(headers, rows)]
    for hop in hops:
        lines += [f"{hop.hop}: {note}" for note in hop.notes]
    return "\n".join(lines)


def _verdict(passed: bool) -> str:
    return "" if passed else "FAILED"


def comparison(found: Comparison) -> str:
    """A gate's result: the table, the verdict, and where it diverges."""
    hop = found.hop
    lines = [certificate([hop])]
    if found.blocks:
        headers = ("tensor", "max_abs", "tolerance", "")
        rows = [(b.name, b.max_abs, b.tolerance, "diverges" if b.diverges else "")
                for b in found.blocks]  # fmt: skip
        lines.append(table(headers, rows))
    lines.append(
        f"{VERDICT[hop.passed]} on {hop.provider}: {hop.samples} samples, batches "
        f"{', '.join(map(str, hop.batches))}, rows differ by {_cell(hop.row_max_abs)}, "
        f"top-1 agrees on {_percent(hop.top1_agreement)}"
    )
    if hop.reason:
        lines += [f"  - {reason}" for reason in hop.reason.split("; ")]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.4g} %"


def loaded(report: LoadReport) -> str:
    """What became of every tensor of a checkpoint, and where the config came from."""
    rows = [
        ("weights", f"{report.source}: {report.layout} layout, sha256 {report.sha256[:12]}"),
        ("used", f"{len(report.used)} tensors"),
        *(("resampled", name) for name in report.resampled),
        *(("zero", f"{name} (asked for)") for name in report.reinitialised),
        *(("unused", name) for name in report.unused),
        ("seen", ", ".join(f"{name} {value}" for name, value in report.inferred.items())),
        *(("assumed", f"{name}: {origin}") for name, origin in report.assumed.items()),
    ]
    return _pairs(rows)


def exported(result: ExportResult) -> str:
    """What an export made, and what to do next."""
    hop, name = result.comparison.hop, result.path
    lines = [
        *([loaded(result.report), ""] if result.report is not None else []),
        certificate([c.hop for c in result.comparisons]),
        "",
        f"{name}  {size(result.size_bytes)}  {result.seconds:.1f} s  "
        f"max|y - y64| {_cell(hop.max_abs)} (allowed {_cell(hop.tolerance)}, torch float32 "
        f"{_cell(hop.baseline_max_abs)})  {result.nodes[0]} -> {result.nodes[1]} nodes",
    ]
    following = [f"validate {name}    (anywhere: needs numpy and onnxruntime only)"]
    if any(s.name == "logits" and len(s.shape) == 2 for s in result.manifest.outputs):
        following.insert(0, f"predict {name} PHOTO.jpg")
    lines += [f"note: {note}" for note in result.notes]
    lines += [f"{'next:' if i == 0 else '     '} vit-export {c}" for i, c in enumerate(following)]
    return "\n".join(lines)


def trained(result: Trained) -> str:
    """How a training went, and what to do next."""
    best, files = result.result.best, result.result.files
    early = ", stopped early" if result.result.stopped_early else ""
    lines = [
        *([loaded(result.report), ""] if result.report is not None else []),
        f"{files.checkpoint}  best epoch {best.epoch} of {len(result.result.history)}{early}: "
        f"{100 * best.val_accuracy:.2f} % of {len(result.result.held_out)} held-out images right, "
        f"loss {best.val_loss:.4f} ({result.result.num_train} trained on)",
        f"curve: {files.curve}   history: {files.history}",
        *([f"predictions: {result.predictions}"] if result.predictions else []),
        f"next: vit-export onnx --weights {files.checkpoint}",
    ]
    return "\n".join(lines)


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
    lines = [_pairs(rows)]
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
    return "\n".join([_pairs(rows), "", certificate(manifest.certificate)])


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
    return _pairs([
        ("golden file", str(path)),
        ("inputs", inputs + shape),
        *(("output", line) for line in outputs),
        ("blocks", blocks or "not recorded"),
    ])  # fmt: skip


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {text}".rstrip() for name, text in rows)


class TerminalProgress:
    """A bar on a terminal, a line per stage elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.live = self._stream.isatty()
        self._stage = ""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Show where the work is; see `vit_export.progress.Progress`."""
        if self.live:
            bar = f" [{'#' * (20 * done // total):<20}] {done}/{total}" if total else " ..."
            self._stream.write(f"\r\033[K{stage}{bar}")
        elif stage != self._stage:
            self._stream.write(f"{stage}\n")
        self._stage = stage
        self._stream.flush()

    def line(self, text: str) -> None:
        """Leave a line that stays."""
        self.close()
        self._stream.write(text + "\n")
        self._stream.flush()
        self._stage = ""

    def close(self) -> None:
        """Leave a clean line behind."""
        if self.live and self._stage:
            self._stream.write("\r\033[K")
            self._stream.flush()


class EpochLines:
    """Training on a terminal: a bar per epoch, then a line that stays."""

    def __init__(self, progress: TerminalProgress) -> None:
        self._progress = progress

    def __call__(self, now: EpochProgress) -> None:
        """Show a step, or the end of an epoch."""
        if now.finished is None:
            if not self._progress.live:
                return
            self._progress(
                f"epoch {now.epoch}/{now.epochs}  loss {now.loss:.4f}  "
                f"accuracy {100 * now.accuracy:.1f} %",
                now.step,
                now.steps,
            )
            return
        done = now.finished
        self._progress.line(
            f"epoch {done.epoch}/{now.epochs}  loss {done.train_loss:.4f}  "
            f"val loss {done.val_loss:.4f}  val accuracy {100 * done.val_accuracy:.2f} %  "
            f"{done.time_s:.1f} s"
        )
