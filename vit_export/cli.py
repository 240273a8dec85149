"""The command line: parse, call one function, render."""

from __future__ import annotations

import sys
from typing import Any

import click

from vit_export import __version__
from vit_export.console import Commands, emit, progress_bar
from vit_export.errors import UsageError
from vit_export.variants import CHOICES, IDENTITY, VARIANTS

SEED = click.IntRange(0, 2**63 - 1)
json_option = click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
provider_option = click.option(
    "--provider", default="auto", show_default=True, help="cpu, cuda, tensorrt, or auto."
)
labels_option = click.option("--labels", metavar="FILE", help="Class names: lines, or JSON.")
layout_option = click.option("--layout", help="How the checkpoint names its tensors.")


def preprocess_options(command: Any) -> Any:
    """Options that say how images are prepared."""
    for option in (
        click.option("--interpolation", type=click.Choice(CHOICES["interpolation"])),
        click.option("--crop-pct", type=float, help="Crop size / resized short side."),
        click.option("--std", metavar="R,G,B", help="Of pixels in [0, 1]."),
        click.option("--mean", metavar="R,G,B", help="Of pixels in [0, 1]."),
    ):
        command = option(command)
    return command


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"--set {pair}: expected field=value, e.g. --set num_heads=8")
        if name in settings:
            raise UsageError(f"--set {name} is given twice")
        if name in IDENTITY:
            raise UsageError(f"--set {name}: says which variant it is, and cannot be set")
        settings[name] = value
    return settings


def _overrides(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Config fields from --set, and from options of their own."""
    settings = _settings(options["sets"])
    own = _given(**{name: options[name] for name in names})
    for name in own.keys() & settings.keys():
        raise UsageError(f"{name} is given twice: with --set and with an option of its own")
    return settings | own


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vit-export")
def main() -> None:
    """Take a Vision Transformer out of torch, and measure every step."""


@main.command()
@click.option("--variant", metavar="NAME", help="e.g. b16; `vit-export variants` lists them.")
@click.option("--weights", metavar="FILE", help="Checkpoint: a file, a folder, hub, hf:owner/name.")
@layout_option
@click.option("--reset-head", is_flag=True, help="A new, zero head for another --num-classes.")
@click.option("--module", metavar="PKG:FACTORY", help="Export any nn.Module instead.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of random weights.")
@click.option("--num-classes", type=int, help="0 exports features.")
@click.option("--img-size", metavar="PX", help="e.g. 384, or 224x160 (height x width).")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any other config field.")
@labels_option
@preprocess_options
@click.option("--batch", default="dynamic", show_default=True, metavar="dynamic|N")
@click.option("--dynamic-size", is_flag=True, help="Any height and width, multiples of the patch.")
@click.option("--opset", type=int, help="20 by default, 23 with --attention op.")
@click.option("--attention", type=click.Choice(["decomposed", "op"]), default="decomposed")
@click.option("--precision", type=click.Choice(["fp32"]), default="fp32", show_default=True)
@click.option("--outputs", default="logits", show_default=True, help="logits,features,tokens")
@click.option("--images", metavar="DIR", help="Measure on these pictures as well.")
@click.option("--no-simplify", is_flag=True, help="Leave the graph as torch exports it.")
@click.option("--external-data", is_flag=True, help="Weights beside the file; above 2 GiB always.")
@click.option("-o", "--output", metavar="PATH", help="By default ./<variant>.onnx")
@json_option
def onnx(as_json: bool, **options: Any) -> None:
    """Variant or checkpoint to a validated, simplified ONNX file."""
    from vit_export.pipeline import export

    if options["module"] and (options["variant"] or options["weights"]):
        raise UsageError("--module stands alone: give neither --variant nor --weights with it")
    subject: Any = options["variant"]
    if options["variant"] is not None:
        from vit_export.variants import get_variant

        get_variant(options["variant"])  # a typo is answered before anything heavy is loaded
    if options["module"]:
        from vit_export.subject import import_module

        subject = import_module(options["module"], seed=options["seed"])
    elif not options["weights"]:
        _shout_random(options["seed"])
    with progress_bar() as progress:
        result = export(
            subject,
            options["output"],
            weights=options["weights"],
            layout=options["layout"],
            reset_head=options["reset_head"],
            seed=options["seed"],
            overrides=_overrides(options, "num_classes", "img_size"),
            batch=_batch(options["batch"]),
            dynamic_size=options["dynamic_size"],
            opset=options["opset"],
            attention=options["attention"],
            outputs=_names(options["outputs"]),
            labels=_labels(options["labels"]),
            preprocess=_preprocess(options),
            images=options["images"],
            simplify=not options["no_simplify"],
            external_data=options["external_data"],
            progress=progress,
        )
    from vit_export.report import exported

    data = {
        "path": result.path,
        "golden": result.golden,
        "files": result.files,
        "size_bytes": result.size_bytes,
        "seconds": result.seconds,
        "nodes": result.nodes,
        "passed": result.comparison.passed,
        "manifest": result.manifest,
        "report": result.report,
        "notes": result.notes,
    }
    emit(as_json, data, exported(result))


def _shout_random(seed: int) -> None:
    click.secho(
        f"WARNING: the weights are RANDOM (seed {seed}): what this model predicts means nothing. "
        "Give trained ones with --weights FILE.",
        fg="yellow",
        bold=True,
        err=True,
    )


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text}: expected 'dynamic' or a number of images")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--outputs: expected at least one of logits, features, tokens")
    return names


def _labels(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    from vit_export.labels import read_labels

    return read_labels(path)


def _preprocess(options: dict[str, Any]) -> dict[str, Any]:
    return _given(**{k: options[k] for k in ("mean", "std", "crop_pct", "interpolation")})


@main.command()
@click.argument("artifact")
@click.option("--golden", metavar="FILE", help="By default NAME.golden.npz beside the artifact.")
@click.option("--weights", metavar="FILE", help="Compute the truth again from this checkpoint.")
@layout_option
@preprocess_options
@provider_option
@json_option
def validate(artifact: str, as_json: bool, **options: Any) -> None:
    """Run the gate again on an artifact; needs numpy and onnxruntime only."""
    from vit_export.pipeline import revalidate
    from vit_export.report import comparison

    with progress_bar() as progress:
        found = revalidate(
            artifact,
            golden=options["golden"],
            weights=options["weights"],
            layout=options["layout"],
            provider=options["provider"],
            preprocess=_foreign_preprocess(artifact, options),
            progress=progress,
        )
    data = {"artifact": artifact, "passed": found.passed, **vars(found)}
    if not found.passed:
        data["error"] = f"{artifact} does not compute what its torch model does"
    emit(as_json, data, comparison(found))
    if not found.passed:
        click.echo(f"Error: {data['error']}", err=True)
        sys.exit(1)


def _foreign_preprocess(artifact: str, options: dict[str, Any]) -> Any:
    """The image preparation given on the command line; `None` to take the file's own."""
    changes = _preprocess(options)
    if not changes:
        return None
    from vit_export.runtime.foreign import given_preprocess

    return given_preprocess(artifact, changes)


@main.command()
@click.argument("artifact")
@click.argument("images", nargs=-1, required=True)
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1))
@labels_option
@preprocess_options
@provider_option
@json_option
def predict(
    artifact: str, images: tuple[str, ...], top: int, as_json: bool, **options: Any
) -> None:
    """Name what is on images."""
    from vit_export.report import predictions
    from vit_export.runtime import load

    classifier = load(
        artifact,
        provider=options["provider"],
        preprocess=_foreign_preprocess(artifact, options),
        labels=_labels(options["labels"]) or None,
    )
    found = list(zip(images, classifier.classify(list(images), top=top), strict=True))
    rows = [{"image": image, "provider": classifier.provider, "top": best} for image, best in found]
    text = f"{predictions(found)}\nprovider: {classifier.provider}"
    for name, reason in getattr(classifier.runner, "rejected", {}).items():
        text += f"\nnot {name}: {reason}"
    emit(as_json, {"predictions": rows}, text)


@main.command()
@click.argument("path")
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Show what is in an ONNX or golden file."""
    from pathlib import Path

    from vit_export import report

    if path.endswith(".npz"):
        from vit_export.golden import Golden

        found = Golden.read(path)
        data = {"path": path, "samples": found.samples, "e32": found.e32}
        emit(as_json, data, report.golden(Path(path), found))
        return
    from vit_export.onnxfile import OnnxFile

    file = OnnxFile.read(path)
    file.check_external_data()
    data = {
        "path": file.path,
        "size_bytes": file.size_bytes,
        "producer": file.producer,
        "ir_version": file.ir_version,
        "opsets": file.opsets,
        "inputs": file.inputs,
        "outputs": file.outputs,
        "weights_bytes": file.weights_bytes,
        "external_files": file.external_files,
        "op_counts": file.op_counts,
        "manifest": file.manifest,
    }
    emit(as_json, data, report.described(file))


@main.command()
@click.option("--variant", metavar="NAME", help="May be left out with --weights.")
@click.option("--data", required=True, metavar="PATH", help="Class folders, or a digits CSV.")
@click.option("--weights", metavar="FILE", help="Start from this checkpoint, not from random.")
@layout_option
@click.option("--reset-head", is_flag=True, help="A new, zero head for other classes.")
@click.option("--img-size", metavar="PX", help="e.g. 384, or 224x160 (height x width).")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any other config field.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--optimizer", type=click.Choice(["adamw", "adam"]))
@click.option("--learning-rate", type=float, help="The highest, after the warm-up.")
@click.option("--warmup-epochs", type=float)
@click.option("--weight-decay", type=float)
@click.option("--label-smoothing", type=float)
@click.option("--drop-path-rate", type=float, help="Stochastic depth of the last block.")
@click.option("--clip-grad-norm", type=float)
@click.option("--rotation-degrees", type=float, help="Largest random rotation.")
@click.option("--shift", type=float, help="Largest random shift, as a share of the side.")
@click.option("--validation-fraction", type=float, help="Share held out, stratified.")
@click.option("--patience", type=int, help="Stop after so many epochs without a better one.")
@click.option("--seed", type=int)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--resume", is_flag=True, help="Go on where a run with this output stopped.")
@click.option("--predict", "test", metavar="CSV", help="Write ImageId,Label for a test CSV.")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="By default ./<variant>.safetensors, or ./<weights>.finetuned.safetensors",
)
@json_option
def finetune(as_json: bool, **options: Any) -> None:
    """Train a variant, or a checkpoint, on labelled images."""
    import dataclasses
    from pathlib import Path

    from vit_export import report
    from vit_export.model.history import TrainingFiles
    from vit_export.model.recipe import TrainingSettings
    from vit_export.training import Start, train

    wanted = {field.name for field in dataclasses.fields(TrainingSettings)}
    start = Start(
        variant=options["variant"],
        weights=options["weights"],
        layout=options["layout"],
        overrides=_overrides(options, "img_size", "drop_path_rate"),
        reset_head=options["reset_head"],
    )
    output = Path(options["output"]) if options["output"] else start.default_output()
    try:
        with progress_bar() as progress:
            trained = train(
                start,
                Path(options["data"]),
                output,
                settings=TrainingSettings(**_given(**{n: options[n] for n in wanted})),
                device=options["device"],
                resume=options["resume"],
                test=Path(options["test"]) if options["test"] else None,
                progress=progress,
                epochs_progress=report.EpochLines(progress),
            )
    except KeyboardInterrupt as error:
        saved = TrainingFiles.beside(output).state.is_file()
        next_step = "; go on with --resume" if saved else " before an epoch was saved; start again"
        raise click.Abort(f"interrupted{next_step}") from error
    data = {"files": trained.result.files, "best": trained.result.best,
            "history": trained.result.history, "stopped_early": trained.result.stopped_early,
            "predictions": trained.predictions, "report": trained.report}  # fmt: skip
    emit(as_json, data, report.trained(trained))


@main.command()
@json_option
def variants(as_json: bool) -> None:
    """List the architectures known by name."""
    from vit_export import report

    rows = [{**vars(c), "num_params": c.num_params} for c in VARIANTS.values()]
    emit(as_json, {"variants": rows}, report.variants(VARIANTS.values()))


@main.command()
@click.option("--strict", is_flag=True, help="Exit with 1 when something is broken.")
@json_option
def doctor(strict: bool, as_json: bool) -> None:
    """Say what this machine can run, and what mends each fault."""
    from vit_export.doctor import examine, render

    diagnosis = examine()
    emit(as_json, diagnosis.to_dict(), render(diagnosis))
    if strict and diagnosis.faults:
        sys.exit(1)
