"""Write a folder from which CMake builds a C++ program for one artifact."""

import re
import shlex
import shutil
from pathlib import Path

from vit_export import __version__
from vit_export.artifact.golden import golden_path
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import FEATURES, LOGITS
from vit_export.errors import ArtifactError, GateError, UsageError
from vit_export.gate.preparation import measure_preparation

CMAKE_FOLDER = Path(__file__).with_name("cpp")  # the library, as a CMake project
PREPARATION = "preprocess.onnx"  # beside the model
_TEMPLATES = CMAKE_FOLDER / "package"
_COLORS = {"RGB": "RGB", "L": "grey", "": "arrays"}
_CALLS = {  # what the example does with an image, by the output that it prints
    LOGITS: """\
    for (const vit::Prediction& p : model.classify(rgb.data(), width, height, /*top=*/5)) {
      std::cout << p.score << "  " << p.label << "\\n";
    }""",
    FEATURES: """\
    for (const float value : model.embed(rgb.data(), width, height)) std::cout << value << " ";
    std::cout << "\\n";""",
}


def write_cpp(file: OnnxFile, golden: Path, folder: Path) -> None:
    """Write model, preparation, class names, library, example and README into an empty folder.

    Args:
        file: An artifact of vit-export whose inputs are images.
        golden: Its golden file.
        folder: Where to write.

    Raises:
        ArtifactError: The C++ library cannot run the file.
        GateError: The graph of the image preparation gives other pixels than Pillow.
        ModuleNotFoundError: onnx-ir is not installed, which writes that graph.
    """
    manifest = file.manifest
    if manifest is None:
        raise ArtifactError(
            f"{file.path}: has no vit-export manifest, which the C++ library reads",
            hint="export the model with vit-export",
        )
    if manifest.preprocess is None:
        raise ArtifactError(f"{file.path}: its inputs are not images, so there is no C++ program")
    manifest.preprocess.check_known(str(file.path))
    name = file.path.name
    model = folder / "model"
    model.mkdir()
    for source in (file.path, *file.external_files):
        shutil.copyfile(source, model / source.name)
    shutil.copyfile(golden, golden_path(model / name))
    if manifest.labels:
        lines = (" ".join(label.split()) for label in manifest.labels)
        (model / "labels.txt").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
    preparation = "" if manifest.embedded else _write_preparation(manifest.preprocess, model)
    ignore = shutil.ignore_patterns("package", "__pycache__")
    shutil.copytree(CMAKE_FOLDER, folder / "vit_export", ignore=ignore)
    output = LOGITS if LOGITS in [spec.name for spec in manifest.outputs] else FEATURES
    values = {
        **_facts(file, manifest, manifest.preprocess),
        "PROJECT": re.sub(r"\W", "_", name.removesuffix(".onnx"), flags=re.ASCII),
        "PATH": shlex.quote(f"model/{name}"),
        "LITERAL": re.sub(r'(["\\])', r"\\\1", f"model/{name}"),
        "CALL": _CALLS[output],
        "RESULT": "classes" if output == LOGITS else "features",
        "EMBED": "" if output == LOGITS else " --embed",
        "FILES": _table_of_files(name, model) + preparation,
    }
    for template in _TEMPLATES.iterdir():
        text = re.sub(r"@([A-Z]+)@", lambda m: values[m[1]], template.read_text(encoding="utf-8"))
        (folder / template.name.removesuffix(".in")).write_text(text, encoding="utf-8")


def _facts(file: OnnxFile, manifest: Manifest, preprocess: Preprocess) -> dict[str, str]:
    """Return what the README says about the model."""
    height, width = preprocess.size
    weights = manifest.weights.source
    if manifest.weights.random:
        weights += ": **not trained**, the classes mean nothing"
    elif manifest.weights.sha256:
        weights += f", sha256 {manifest.weights.sha256[:16]}"
    stage = manifest.certificate[-1] if manifest.certificate else None
    measured = "not measured"
    if stage is not None and stage.max_abs is not None:
        measured = f"differs from torch in float64 by at most {stage.max_abs:.2g}"
        if stage.tolerance is not None:
            measured += f" (tolerance {stage.tolerance:.2g})"
        if stage.cosine is not None:
            measured += f", cosine {stage.cosine:.6f}"
        measured += f", on {stage.provider}"
    return {
        "MODEL": file.path.name,
        "VERSION": __version__,
        "VARIANT": manifest.variant,
        "PRECISION": manifest.precision,
        "OPSET": str(manifest.opset),
        "SIZE": f"{file.total_bytes / 1e6:.1f} MB",
        "WEIGHTS": weights,
        "IMAGES": f"{height} x {width} {_COLORS[preprocess.color]}, "
        f"{preprocess.interpolation}, {preprocess.crop_mode} crop {preprocess.crop_pct:g}, "
        f"mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)}",
        "OUTPUT": "; ".join(f"`{spec}`" for spec in manifest.outputs),
        "MEASURED": measured,
    }


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _write_preparation(preprocess: Preprocess, folder: Path) -> str:
    """Write a graph that prepares images, and measure it; or return why there is none."""
    from vit_export.graph.preprocess import check_expressible, write_preparation
    from vit_export.runtime.onnxruntime.runner import OrtRunner

    form, path = "matmul", folder / PREPARATION  # which is Pillow's to the bit, on any runtime
    try:
        check_expressible(preprocess, form)
    except UsageError as error:
        return f"\n\nThere is no `{PREPARATION}`: {error.message}."
    write_preparation(preprocess, form, path)
    runner = OrtRunner(path, provider="cpu")
    line = measure_preparation(runner, preprocess, resize=form, stage=PREPARATION)
    runner.release()
    if not line.passed:
        raise GateError(f"{line.name}: {line.reason}; nothing was written")
    return ""


def _table_of_files(name: str, model: Path) -> str:
    rows = {
        f"model/{name}": "graph, weights, image preparation and class names",
        f"model/{golden_path(name)}": "inputs, and what torch computes for them in float64",
        f"model/{PREPARATION}": "image preparation alone, for other programs: `image`, uint8 "
        "(B, H, W, 3), to `pixel_values`; the library prepares images itself",
        "model/labels.txt": "class names, for other programs: the library reads the model's own",
        "vit_export/": "the library: headers, sources and CMake files",
        "vit_export/examples/vit-classify/": "sources of the program",
        "example.cpp": "start of a program of your own",
    }
    return "\n".join(
        f"| `{path}` | {what} |"
        for path, what in rows.items()
        if not path.startswith("model/") or (model / path.removeprefix("model/")).exists()
    )
