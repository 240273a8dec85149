"""`vit-export doctor`: examine this machine."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

import click

from vit_export.cli.console import emit
from vit_export.cli.option_fields import OUTPUT, SectionCommand, option, takes
from vit_export.cli.options import json_option


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `doctor`."""

    strict: bool = option(OUTPUT, "Exit with 1 if there is a problem.")


@click.command(cls=SectionCommand)
@takes(DoctorOptions)
@json_option
def doctor(options: DoctorOptions, as_json: bool) -> None:
    """Show what this machine can run and how to fix each problem."""
    from vit_export.cli.report.diagnosis import diagnosis_text
    from vit_export.host.doctor import examine

    diagnosis = examine()
    emit(as_json, dataclasses.asdict(diagnosis), diagnosis_text(diagnosis))
    if options.strict and diagnosis.faults:
        sys.exit(1)
