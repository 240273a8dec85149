"""`vit-export doctor`: what this machine can run."""

from __future__ import annotations

import sys

import click

from vit_export.cli.console import emit
from vit_export.cli.options import json_option


@click.command()
@click.option("--strict", is_flag=True, help="Exit with 1 when something is broken.")
@json_option
def doctor(strict: bool, as_json: bool) -> None:
    """Say what this machine can run, and what mends each fault."""
    from vit_export.cli.report.diagnosis import diagnosis_text
    from vit_export.host.doctor.examine import examine

    diagnosis = examine()
    emit(as_json, diagnosis.to_dict(), diagnosis_text(diagnosis))
    if strict and diagnosis.faults:
        sys.exit(1)
