"""Options of a command as fields of a dataclass, which `--help` lists by section.

Not cloup: importing it takes longer than importing click, and `--help` has to answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import click

Section = Literal[
    "Source", "Image preparation", "Graph", "Precision", "Target", "Build", "Weights", "Recipe",
    "Regularisation", "Timing", "Run", "Output", "Other options",
]  # fmt: skip
HELP = {"help_option_names": ["-h", "--help"]}
_TYPES = {"str": str, "int": int, "float": float, "Path": Path}


class SectionOption(click.Option):
    """An option that `--help` lists in a section."""

    def __init__(self, *args: Any, section: Section, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


class SectionCommand(click.Command):
    """A command whose `--help` lists its options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that have options."""
        rows: dict[str, list[tuple[str, str]]] = {section: [] for section in get_args(Section)}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                rows[getattr(parameter, "section", "Other options")].append(row)
        for section in filter(rows.get, rows):
            with formatter.section(section):
                formatter.write_dl(rows[section])


def option(
    section: Section,
    help: str = "",
    metavar: str | None = None,
    *,
    short: str = "",
    choices: Sequence[str] = (),
    default: Any = None,
    **attributes: Any,
) -> Any:
    """Declare a field of a dataclass as an option.

    The field's name is the option's: `crop_pct` is `--crop-pct`. Its annotation says whether it
    is a text, a number, a path, a flag (`bool`) or may be repeated (`tuple[str, ...]`).

    Args:
        section: Section of `--help`.
        help: A short sentence.
        metavar: What `--help` shows for the value.
        short: A second name of one letter, e.g. `-o`.
        choices: The only values it takes.
        default: Value without the option; `--help` shows it.
        **attributes: Further arguments of `click.Option`.
    """
    attributes |= {"section": section, "help": help, "metavar": metavar}
    if default is not None:
        attributes |= {"default": default, "show_default": default != ""}
    if choices:
        attributes["type"] = click.Choice(choices)
    return dataclasses.field(metadata={"short": short, "attributes": attributes})


def command(kind: type | None = None) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command, with --json as its argument `as_json`.

    Args:
        kind: A dataclass; its fields are options of the command, and the function gets an
            instance as its argument `options`.
    """
    fields = dataclasses.fields(kind) if kind is not None else ()

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def call(**values: Any) -> None:
            if kind is not None:
                values["options"] = kind(**{field.name: values.pop(field.name) for field in fields})
            function(**values)

        # click keeps a command's help option from its first call, which may be without the group
        made = click.command(cls=SectionCommand, context_settings=HELP)(call)
        as_json = SectionOption(["--json", "as_json"], section="Output", is_flag=True,
                                help="End with one JSON object on standard output.")  # fmt: skip
        made.params += [*map(_click_option, fields), as_json]
        return made

    return decorate


def _click_option(field: dataclasses.Field[Any]) -> click.Option:
    declared = str(field.type)
    annotation = declared.removesuffix(" | None")
    attributes = dict(field.metadata["attributes"])
    if annotation == "bool":
        attributes["is_flag"] = True
        if annotation != declared:
            attributes["default"] = None  # click's own is False
    elif annotation.startswith("tuple"):
        attributes["multiple"] = True
    elif "type" not in attributes:
        attributes["type"] = _TYPES[annotation]
    names = (field.metadata["short"], f"--{field.name.replace('_', '-')}", field.name)
    return SectionOption(list(filter(None, names)), **attributes)
