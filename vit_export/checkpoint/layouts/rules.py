"""Rules that turn the tensor names and shapes of a library into those of `vit.py`.

Names in rules are templates: `{n}` stands for the number of a block, `{p}` for `weight` or `bias`,
`{i}` for the place of the only layer with parameters in an `nn.Sequential`.
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
TRANSPOSE = Conversion("kernel transposed", lambda kernel: kernel.t())
JOIN_QKV = Conversion("q, k and v joined", lambda q, k, v: torch.cat((q, k, v)))
JOIN_WITHOUT_KEY = Conversion(
    "q and v biases joined, the key's bias is zero",
    lambda q, v: torch.cat((q, torch.zeros_like(q), v)),
)
JOIN_GATE = Conversion("gate and hidden layer joined", lambda gate, up: torch.cat((gate, up)))


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
class Cue:
    """What some names in a file say about its model."""

    having: tuple[str, ...]  # templates; the file has a name of each
    lacking: tuple[str, ...] = ()  # the file has a name of none
    # value, and the source that the report names
    fields: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    unsupported: str = ""  # the part which `VisionTransformer` lacks
    asked: Mapping[str, str] = field(default_factory=dict)  # fields to be stated: possible values


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensor names of one library, and what its models have in common."""

    name: str  # value of `--layout`
    rules: tuple[Rule, ...]  # for every tensor that can be loaded
    prefix: str = ""  # regular expression of an optional prefix of all names
    ignored: tuple[str, ...] = ()  # templates of tensors that classification does not use
    # regular expressions of tensors of other networks, e.g. a text tower; matched from the start
    others: tuple[str, ...] = ()
    required: tuple[str, ...] = ()  # templates; a file without a name of each has another layout
    cues: tuple[Cue, ...] = ()  # of several about a field, the first counts
    # regular expressions of names that show a part which `VisionTransformer` lacks: its description
    unsupported: Mapping[str, str] = field(default_factory=dict)
    # default config fields of the library's models: value, and the source that the report names
    assumed: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    heads_in_table: bool = True  # num_heads may be taken from a variant of the same widths

    def matches(self, template: str, names: Iterable[str]) -> Iterator[re.Match[str]]:
        """Matches of a template, with its groups and `prefix`, in the order of names."""
        body = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{i\}", r"(?P<i>\d+)")
        body = body.replace(r"\{p\}", "(?P<p>weight|bias)")
        expression = re.compile(f"(?P<prefix>{self.prefix}){body}")
        return (match for name in names if (match := expression.fullmatch(name)))

    def has(self, template: str, names: Iterable[str]) -> bool:
        """Whether one of the names matches a template."""
        return next(self.matches(template, names), None) is not None

    def says(self, names: Iterable[str]) -> Iterator[Cue]:
        """The cues that hold for the names in a file."""
        names = list(names)
        for cue in self.cues:
            having = all(self.has(template, names) for template in cue.having)
            if having and not any(self.has(template, names) for template in cue.lacking):
                yield cue


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
        if rule.when and not layout.has(rule.when, present):
            continue
        if any(layout.has(template, present) for template in rule.unless):
            continue
        matches = [m for template in rule.sources for m in layout.matches(template, present)]
        if len({match.groupdict().get("i") for match in matches}) > 1:
            continue  # several layers, of which nothing says how they are connected
        for match in matches:
            values = {"n": "", "p": "", "i": "", **match.groupdict()}
            target = rule.target.format(**values)
            sources = tuple(values["prefix"] + name.format(**values) for name in rule.sources)
            matched.add(match.group())
            if missing := tuple(name for name in sources if name not in present):
                incomplete.setdefault(target, missing)
            else:
                steps.setdefault(target, Rule(sources, target, rule.conversion))
    rest = [name for name in present if name not in matched]
    ignored = {match.group() for form in layout.ignored for match in layout.matches(form, rest)}
    ignored |= {name for name in rest if any(re.match(other, name) for other in layout.others)}
    return Binding(
        steps=tuple(steps.values()),
        incomplete={target: names for target, names in incomplete.items() if target not in steps},
        ignored=tuple(name for name in rest if name in ignored),
        unexpected=tuple(name for name in rest if name not in ignored),
    )
