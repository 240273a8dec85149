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
from vit_export.errors import ArtifactError

CMAKE_FOLDER = Path(__file__).with_name("cpp")  # the library, as a CMake project
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
    """Write model, golden file, class names, library, example and a README into an empty folder.

    Args:
        file: An artifact of vit-export whose inputs are images.
        golden: Its golden file.
        folder: Where to write.

    Raises:
        ArtifactError: The C++ library cannot run the file.
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
        "FILES": _table_of_files(name, has_labels=bool(manifest.labels)),
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


def _table_of_files(name: str, *, has_labels: bool) -> str:
    rows = {
        f"model/{name}": "graph, weights, image preparation and class names",
        f"model/{golden_path(name)}": "inputs, and what torch computes for them in float64",
        "model/labels.txt": "class names, for other programs: the library reads the model's own",
        "vit_export/": "the library: headers, sources and CMake files",
        "vit_export/examples/vit-classify/": "sources of the program",
        "example.cpp": "start of a program of your own",
    }
    if not has_labels:
        del rows["model/labels.txt"]
    return "\n".join(f"| `{path}` | {what} |" for path, what in rows.items())
