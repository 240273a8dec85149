"""The command line `vit-export`: one group, with a command per file of `commands/`."""

import click

from vit_export import __version__
from vit_export.cli.commands.bench import bench
from vit_export.cli.commands.doctor import doctor
from vit_export.cli.commands.embed import embed
from vit_export.cli.commands.engine import engine
from vit_export.cli.commands.finetune import finetune
from vit_export.cli.commands.inspect import inspect
from vit_export.cli.commands.onnx import onnx
from vit_export.cli.commands.package import package
from vit_export.cli.commands.predict import predict
from vit_export.cli.commands.quantize import quantize
from vit_export.cli.commands.validate import validate
from vit_export.cli.commands.variants import variants
from vit_export.cli.console import Commands
from vit_export.cli.option_fields import HELP


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(__version__, prog_name="vit-export")
def main() -> None:
    """Export Vision Transformers from PyTorch to ONNX and TensorRT, and measure every step."""


for command in (
    onnx, quantize, engine, validate, bench, predict, embed, inspect, package, finetune, variants,
    doctor,
):  # fmt: skip
    main.add_command(command)
