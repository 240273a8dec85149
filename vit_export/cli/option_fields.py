"""Options of a command as fields of a dataclass, which `--help` lists by section.

Not cloup: importing it takes longer than importing click, and `--help` has to answer at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import click

Section = Literal[
    "Source", "Image preparation", "Graph", "Precision", "Target", "Build", "Weights", "Recipe",
    "Regularisation", "Timing", "Run", "Output", "Other options",
]  # fmt: skip
HELP = {"help_option_names": ["-h", "--help"]}


class SectionOption(click.Option):
    """An option that `--help` lists in a section."""

    def __init__(self, *args: Any, section: Section, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


class SectionCommand(click.Command):
    """A command whose `--help` lists its options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
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
    choices: Sequence[str] = (),
    default: Any = None,
    **attributes: Any,
) -> Any:
    """Declare a field of a dataclass as an option: `crop_pct` is `--crop-pct`, `output` also `-o`.

    The annotation says whether it is a text, a number, a path, a flag (`bool`) or may be repeated
    (`tuple[str, ...]`). Other keywords are those of `click.Option`.
    """
    attributes |= {"section": section, "help": help, "metavar": metavar}
    if default is not None:
        attributes |= {"default": default, "show_default": default != ""}
    if choices:
        attributes["type"] = click.Choice(choices)
    return dataclasses.field(metadata=attributes)


def command(kind: type | None = None) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command, with --json as its argument `as_json`.

    The fields of `kind`, a dataclass, are its options; it gets an instance as `options`.
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
    attributes = dict(field.metadata)
    optional = type(None) in get_args(field.type)
    kind = get_args(field.type)[0] if optional else field.type
    if kind is bool:
        attributes["is_flag"] = True
        if optional:
            attributes["default"] = None  # click's own is False
    elif get_origin(kind) is tuple:
        attributes["multiple"] = True
    else:
        attributes.setdefault("type", kind)
    names = [f"--{field.name.replace('_', '-')}", field.name]
    return SectionOption(["-o", *names] if field.name == "output" else names, **attributes)
