"""What an fp32 artifact is to become: the conversions behind one door."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vit_export.artifact.manifest import Conversion
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.half.convert import layers_to_narrow, narrow_nodes, to_half
from vit_export.graph.int8.dynamic import quantised_nodes, to_int8_dynamic
from vit_export.graph.int8.select import planned_layers
from vit_export.graph.int8.static import to_int8_static
from vit_export.graph.layers import block_of


class Target(Protocol):
    """A narrower precision, and how to get there.

    Attributes:
        precision: e.g. `"fp16"`.
        rounded: Whether its arithmetic has to be measured rounded after every operation,
            because a CPU would leave roundings out.
    """

    @property
    def precision(self) -> str: ...

    @property
    def rounded(self) -> bool: ...

    def convert(self, source: Path, destination: Path, keep: Collection[str]) -> Conversion:
        """Convert an fp32 artifact, some of whose layers stay fp32."""
        ...

    def layers(self, source: Path) -> list[str]:
        """The layers that a conversion narrows, in the order of the graph."""
        ...

    def count(self, file: OnnxFile) -> int:
        """Nodes with weights that are narrow in a file, counted in the file itself."""
        ...


@dataclass(frozen=True)
class HalfTarget:
    """FP16 or BF16."""

    precision: str
    recipe: str = "mixed"
    half_io: bool = False
    rounded: bool = True

    def convert(self, source: Path, destination: Path, keep: Collection[str]) -> Conversion:
        return to_half(
            source,
            destination,
            precision=self.precision,
            recipe=self.recipe,
            keep=keep,
            half_io=self.half_io,
        )

    def layers(self, source: Path) -> list[str]:
        return layers_to_narrow(source, precision=self.precision, recipe=self.recipe)

    def count(self, file: OnnxFile) -> int:
        return narrow_nodes(file)


@dataclass(frozen=True)
class DynamicTarget:
    """INT8 whose activations are quantised as it runs."""

    precision: str = "int8"
    rounded: bool = False

    def convert(self, source: Path, destination: Path, keep: Collection[str]) -> Conversion:
        return to_int8_dynamic(source, destination, keep=keep)

    def layers(self, source: Path) -> list[str]:
        return planned_layers(source)

    def count(self, file: OnnxFile) -> int:
        return quantised_nodes(file)


@dataclass(frozen=True)
class StaticTarget:
    """INT8 whose activations have fixed ranges.

    Attributes:
        thresholds: Largest magnitude by tensor; what lies beyond is clipped.
    """

    thresholds: Mapping[str, float]
    precision: str = "int8-static"
    rounded: bool = False

    def convert(self, source: Path, destination: Path, keep: Collection[str]) -> Conversion:
        return to_int8_static(source, destination, thresholds=self.thresholds, keep=keep)

    def layers(self, source: Path) -> list[str]:
        return planned_layers(source)

    def count(self, file: OnnxFile) -> int:
        return quantised_nodes(file)


def units_of(layers: Sequence[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """Layers by the block that they stand in; a layer outside of the blocks is a unit itself."""
    units: dict[str, list[str]] = {}
    for layer in layers:
        units.setdefault(block_of(layer, blocks) or layer, []).append(layer)
    return units
