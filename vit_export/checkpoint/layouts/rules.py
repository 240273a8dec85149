"""Rules that turn the tensor names and shapes of a library into those of `vit.py`.

Names in rules are templates: `{n}` stands for the number of a block, `{p}` for `weight` or `bias`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conversion:
    """Function from the tensors of a file to one of `vit.py`.

    Conversions also run on meta tensors, so that shapes are checked before any data is read.
    """

    label: str  # description for the report; empty for a plain copy
    apply: Callable[..., Tensor]  # takes the source tensors in the order of the rule


COPY = Conversion("", lambda tensor: tensor)
JOIN_QKV = Conversion("q, k and v joined", lambda q, k, v: torch.cat((q, k, v)))


@dataclass(frozen=True)
class Rule:
    """One of our tensors, and the tensors of the file that it is made of."""

    sources: tuple[str, ...]  # templates of names in the file
    target: str  # template of our name
    conversion: Conversion = COPY
    when: str = ""  # only for files with a name of this template
    unless: tuple[str, ...] = ()  # only for files without a name of any of these templates


def rename(source: str, target: str, conversion: Conversion = COPY) -> Rule:
    """Rule for one source tensor."""
    return Rule((source,), target, conversion)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensor names of one library, and what its models have in common."""

    name: str  # value of `--layout`
    rules: tuple[Rule, ...]  # for every tensor that can be loaded
    prefix: str = ""  # regular expression of an optional prefix of all names
    ignored: tuple[str, ...] = ()  # templates of tensors that classification does not use
    # regular expressions of names that show a part which `VisionTransformer` lacks: its description
    unsupported: Mapping[str, str] = field(default_factory=dict)
    # default config fields of the library's models: value, and the source that the report names
    assumed: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    heads_in_table: bool = True  # num_heads may be taken from a variant of the same widths

    def matches(self, template: str, names: Iterable[str]) -> Iterator[re.Match[str]]:
        """Matches of a template, with the groups `prefix`, `n` and `p`, in the order of names."""
        body = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)")
        body = body.replace(r"\{p\}", "(?P<p>weight|bias)")
        expression = re.compile(f"(?P<prefix>{self.prefix}){body}")
        return (match for name in names if (match := expression.fullmatch(name)))


@dataclass(frozen=True, kw_only=True)
class Binding:
    """The rules of a layout applied to the names of a certain file."""

    steps: tuple[Rule, ...]  # with names for templates; the file has all their sources
    incomplete: Mapping[str, tuple[str, ...]]  # missing sources, where the file has some
    ignored: tuple[str, ...]  # names that the layout ignores
    unexpected: tuple[str, ...]  # names that no rule matches


def bind(layout: Layout, names: Iterable[str]) -> Binding:
    """Apply a layout's rules to the names in a file."""
    present = dict.fromkeys(names)
    steps: dict[str, Rule] = {}
    incomplete: dict[str, tuple[str, ...]] = {}
    matched: set[str] = set()
    for rule in layout.rules:
        if rule.when and not any(layout.matches(rule.when, present)):
            continue
        if any(match for template in rule.unless for match in layout.matches(template, present)):
            continue
        for match in (m for template in rule.sources for m in layout.matches(template, present)):
            values = {"n": "", "p": "", **match.groupdict()}
            target = rule.target.format(**values)
            sources = tuple(values["prefix"] + name.format(**values) for name in rule.sources)
            matched.add(match.group())
            if missing := tuple(name for name in sources if name not in present):
                incomplete.setdefault(target, missing)
            else:
                steps.setdefault(target, Rule(sources, target, rule.conversion))
    rest = [name for name in present if name not in matched]
    ignored = {match.group() for form in layout.ignored for match in layout.matches(form, rest)}
    return Binding(
        steps=tuple(steps.values()),
        incomplete={target: names for target, names in incomplete.items() if target not in steps},
        ignored=tuple(name for name in rest if name in ignored),
        unexpected=tuple(name for name in rest if name not in ignored),
    )
