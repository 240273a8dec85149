"""How other libraries name and shape the tensors of a Vision Transformer: one table each.

A rule gives the names in the file, our name, and how the tensors become ours. `{n}` stands
for the number of a block, `{p}` for `weight` or `bias`. Layouts are told apart by the names
alone; conversions work on meta tensors too, so that shapes are checked before any data is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conversion:
    """How tensors of a file become one of ours; `label` is empty for a straight copy."""

    label: str
    apply: Callable[..., Tensor]


def _fold_kernel(kernel: Tensor) -> Tensor:
    """(D, h, d), the kernel of a Flax query, key or value projection, to (D, D)."""
    return kernel.flatten(1).T


COPY = Conversion("", lambda tensor: tensor)
JOIN = Conversion("q, k and v joined", lambda q, k, v: torch.cat((q, k, v)))
JOIN_WITHOUT_KEY = Conversion(
    "q and v biases joined, the key's bias is zero",
    lambda q, v: torch.cat((q, torch.zeros_like(q), v)),
)
TRANSPOSE = Conversion("kernel transposed", lambda kernel: kernel.t())
TRANSPOSE_CONV = Conversion("kernel transposed", lambda kernel: kernel.permute(3, 2, 0, 1))
JOIN_KERNELS = Conversion(
    "heads folded, kernel transposed, q, k and v joined",
    lambda q, k, v: torch.cat([_fold_kernel(kernel) for kernel in (q, k, v)]),
)
JOIN_HEAD_BIASES = Conversion(
    "heads folded, q, k and v joined", lambda q, k, v: torch.cat((q, k, v)).flatten()
)
FOLD_OUT_KERNEL = Conversion(
    "heads folded, kernel transposed", lambda kernel: kernel.flatten(0, 1).T
)
ZERO_CLASS_POSITION = Conversion(
    "zero position put before the patches: this model adds none to its class token",
    lambda patches: torch.cat((torch.zeros_like(patches[:, :1]), patches), dim=1),
)
CLASS_POSITION_FIRST = Conversion(
    "class token's position moved from the last place to the first",
    lambda positions: positions.roll(1, dims=1),
)
DOUBLE = Conversion(
    "doubled: this model reads its class token only, ours is the mean of two heads",
    lambda tensor: 2 * tensor,
)
ZERO_SECOND_HEAD = Conversion(
    "zero: this model does not read its distillation token", torch.zeros_like
)


@dataclass(frozen=True)
class Rule:
    """One of our tensors, and the tensors of the file that it is made of.

    Attributes:
        sources: Names in the file, in the order in which `conversion` takes them.
        target: Our name.
        conversion: How they become ours.
        when: The rule holds only in files that have a name of this form.
        unless: The rule holds only in files that have no name of any of these forms.
    """

    sources: tuple[str, ...]
    target: str
    conversion: Conversion = COPY
    when: str = ""
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of one library.

    Attributes:
        name: What `--layout` takes.
        title: What messages call it.
        rules: The table.
        prefix: Regular expression of what may stand before any name.
        ignored: Forms of names that a model for classification does not need.
        unsupported: Forms of names that our model has no place for, and what they are.
        fixed: Config fields that all models of this library share.
        assumed: Config fields that the library's models have by default, and the reason.
        heads_seen_in: Name of a tensor whose axis 1 counts the heads.
        heads_in_table: Whether a variant of the same widths has the same number of heads.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    heads_seen_in: str = ""
    heads_in_table: bool = True

    def expression(self, form: str) -> re.Pattern[str]:
        """The regular expression of a name in this layout's files."""
        body = re.escape(form).replace(r"\{n\}", r"(?P<n>\d+)")
        body = body.replace(r"\{p\}", "(?P<p>weight|bias)")
        return re.compile(f"(?P<prefix>{self.prefix}){body}")

    def finds(self, form: str, names: Iterable[str]) -> Iterator[re.Match[str]]:
        """Matches of one form of name, in the order of the file."""
        expression = self.expression(form)
        return (match for name in names if (match := expression.fullmatch(name)))


@dataclass(frozen=True)
class Step:
    """One of our tensors, bound to names that one file really has."""

    target: str
    sources: tuple[str, ...]
    conversion: Conversion


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a layout makes of the names in a file.

    Attributes:
        steps: Our tensors, each with its sources.
        incomplete: Our name to the names that the file lacks (a key without its query).
        ignored: Names known to be of no use here.
        unexpected: Names that no rule knows.
    """

    steps: tuple[Step, ...]
    incomplete: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    unexpected: tuple[str, ...]


def bind(layout: Layout, names: Iterable[str]) -> Binding:
    """Apply a layout's rules to the names in a file."""
    present = dict.fromkeys(names)
    steps: dict[str, Step] = {}
    incomplete: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for rule in layout.rules:
        if rule.when and not any(layout.finds(rule.when, present)):
            continue
        if any(True for form in rule.unless for _ in layout.finds(form, present)):
            continue
        for target, sources in _groups(layout, rule, present):
            lacking = tuple(name for name in sources if name not in present)
            seen.update(name for name in sources if name in present)
            if lacking:
                incomplete.setdefault(target, lacking)
            else:
                steps.setdefault(target, Step(target, sources, rule.conversion))
    rest = [name for name in present if name not in seen]
    ignored = [name for name in rest if any(any(layout.finds(f, [name])) for f in layout.ignored)]
    return Binding(
        steps=tuple(steps.values()),
        incomplete={target: lack for target, lack in incomplete.items() if target not in steps},
        ignored=tuple(ignored),
        unexpected=tuple(name for name in rest if name not in set(ignored)),
    )


def _groups(
    layout: Layout, rule: Rule, names: Iterable[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each target of a rule with its sources, wherever the file has at least one of them."""
    done = set()
    names = list(names)
    for form in rule.sources:
        for match in layout.finds(form, names):
            values = {"n": "", "p": "", **match.groupdict()}
            target = rule.target.format(**values)
            if target not in done:
                done.add(target)
                prefix = values["prefix"]
                yield target, tuple(prefix + source.format(**values) for source in rule.sources)


def unsupported_parts(layout: Layout, names: Iterable[str]) -> dict[str, list[str]]:
    """What our model has no place for: a description to the names that show it."""
    parts: dict[str, list[str]] = {}
    expressions = {re.compile(form): what for form, what in layout.unsupported.items()}
    for name in names:
        for expression, what in expressions.items():
            if expression.search(name):
                parts.setdefault(what, []).append(name)
                break
    return parts
