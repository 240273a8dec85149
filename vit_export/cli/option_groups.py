"""Groups of options: a section of `--help`, and one typed object for the command.

Our own 50 lines, since importing cloup takes longer than importing click itself, and `--help`
has to answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option that `--help` lists in the section `group`."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose `--help` has a section per group of options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                title = getattr(parameter, "group", "Other options")
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def option(*names: str, group: str, **attributes: Any) -> Callable[[Function], Function]:
    """Declare an option as `click.option` does, in a section of `--help`."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def option_group(
    parameter: str, kind: type, *options: Callable[[Function], Function]
) -> Callable[[Function], Function]:
    """Declare options whose values reach the command as one object.

    Args:
        parameter: Name of the command's parameter.
        kind: Dataclass with a field for every option.
        options: The options, from `option`.
    """
    names = [field.name for field in dataclasses.fields(kind)]

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def collected(*args: Any, **values: Any) -> Any:
            group = kind(**{name: values.pop(name) for name in names})
            return command(*args, **values, **{parameter: group})

        declared: Any = collected
        for add in reversed(options):
            declared = add(declared)
        return declared  # type: ignore[no-any-return]

    return decorate
