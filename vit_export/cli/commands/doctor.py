"""`vit-export doctor`: examine this machine."""

import dataclasses
import sys

import click

from vit_export.cli.console import emit
from vit_export.cli.option_fields import SectionOption, command


@command()
@click.option("--strict", cls=SectionOption, section="Output", is_flag=True,
              help="Exit with 1 if there is a problem.")  # fmt: skip
def doctor(strict: bool, as_json: bool) -> None:
    """Show what this machine can run and how to fix each problem."""
    from vit_export.cli.report.machine import diagnosis_text
    from vit_export.host.doctor.abilities import examine

    diagnosis = examine()
    emit(as_json, dataclasses.asdict(diagnosis), diagnosis_text(diagnosis))
    if strict and diagnosis.faults:
        sys.exit(1)
