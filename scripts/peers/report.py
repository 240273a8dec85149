"""The results as a page: every figure comes from the JSON beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peers.candidates import NNCF, OPTIMUM, OUR_FP32, OUR_INT8, PLAIN, SESSIONS
from vit_export.cli.report.tables import size

Results = Mapping[str, Any]
OTHER_FP32_FILES = [
    session.name
    for session in SESSIONS
    if session.export and not session.is_int8 and session.name != OUR_FP32
]
HEAD = """\
# Peers

<!-- written by scripts/benchmark_peers: do not edit -->

vit-export beside other tools, with the same random weights and photographs. Every peer runs in a
Python environment of its own, and every candidate in a process of its own that lives for the whole
run. Candidates take turns, A B C A B C, so that a busy moment slows all of them. All get the same
number of threads.

<!-- not run: takes minutes -->
```bash
{command}
```

{machine}
{busy}
The figures are also in [peers.json](peers.json). What was tried to make vit-export faster:
[Performance](../performance.md).

![Latency against error](peers-latency.png)

![Images per second](peers-images.png)
"""
SESSION_TEXT = """\
A run is timed from pixel values in host memory to logits in host memory. `ratio` is the time of the
candidate divided by that of vit-export's fp32 file: the median over the rounds, within a round.
`max_abs` is the largest difference from the logits of timm's model in float64, for {images}
photographs, and `top 1` the share of them with the same best class. Processor time is that of all
threads of the process together. Memory is the largest resident
memory of the process, libraries and loading included. ONNX files of peers run in a bare session of
ONNX Runtime, with its default optimisations.
"""
EXPORT_TEXT = """\
Wall time, processor time and largest memory of the whole command, the fastest of {turns}. The
commands of vit-export include its gate: they compare the written file with torch in float64.
What stands under "from" is another export, whose time is to be added.
"""
FOLDER_TEXT = """\
A folder of {images} photographs, JPEG of 640 x 480, to their best classes. Each candidate prepares
images as its own settings say: timm and vit-export resize the short side and crop, Hugging Face
resizes to a square. The peers run batches of {batch}. "One by one" is the fp32 file of
vit-export with Pillow, numpy and a bare session of ONNX Runtime. The last column is the share of
photographs with the class that vit-export finds: with random weights, other pixels often change it.
"""


def markdown(results: Results) -> str:
    """Return the page."""
    parts = [
        HEAD.format(command=results["command"], machine=_machine(results), busy=_busy(results))
    ]
    for variant in results["variants"]:
        parts.append(f"## {variant['variant']}\n")
        parts.append(_summary(variant))
        parts.append("### Speed and error\n")
        parts.append(SESSION_TEXT.format(images=results["settings"]["reference_images"]))
        parts.extend(_sessions(variant))
        parts.append("### Photographs\n")
        parts.append(FOLDER_TEXT.format(images=results["settings"]["photographs"],
                                        batch=results["settings"]["folder_batch"]))  # fmt: skip
        parts.append(_folders(variant))
        parts.append("### Export\n")
        parts.append(EXPORT_TEXT.format(turns=results["settings"]["export_turns"]))
        parts.append(_exports(variant))
    parts.append("## Versions\n")
    parts.append(_versions(results))
    return "\n".join(parts)


def _machine(results: Results) -> str:
    machine, settings = results["machine"], results["settings"]
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores "
        f"({_instructions(machine)}), {machine['system']}; "
        f"threads: {settings['threads']}, rounds: {settings['rounds']} of "
        f"{settings['turn_s']:g} s, {results['date']}."
    )


def _instructions(machine: Results) -> str:
    """Return what decides the speed of fp32 and INT8."""
    known = machine["instructions"]
    return ", ".join(known + [f"no {name}" for name in ("AVX2", "VNNI") if name not in known])


def _busy(results: Results) -> str:
    """Return a warning where other programs ran at the same time."""
    machine = results["machine"]
    if not machine["busy"]:
        return ""
    return (
        f"\n**Other programs ran at the same time** (load {machine['load_before']:.1f} before, "
        f"{machine['others_after']:.1f} afterwards without the candidates). The times are too "
        "long, and a ratio may be wrong by half: take them again on an idle machine.\n"
    )


def _ratio(rows: Sequence[Results], own: str, others: Iterable[str]) -> str:
    """Return a candidate's share of the time of the fastest of others; empty if not measured."""
    known = {row["name"]: row["ratio_to_ours"] for row in rows if "ratio_to_ours" in row}
    present = {name: known[name] for name in others if name in known}
    if own not in known or not present:
        return ""
    best = min(present, key=present.__getitem__)
    return f"{known[own] / present[best]:.2f} of the time of {best}"


def _summary(variant: Results) -> str:
    """Return the ratios that matter, as a list."""
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in variant["sessions"]):
        rows = [row for row in variant["sessions"] if row["batch"] == batch]
        for own, others in ((OUR_FP32, OTHER_FP32_FILES), (OUR_INT8, [OUR_FP32]),
                            (OUR_INT8, [NNCF])):  # fmt: skip
            if share := _ratio(rows, own, others):
                lines.append(f"{own}, batch {batch}: {share}")
    exports = {row["name"]: row for row in variant["exports"] if "seconds" in row}
    for other in (OPTIMUM, PLAIN):
        if OUR_FP32 in exports and other in exports:
            time, memory = (exports[OUR_FP32][key] / exports[other][key]
                            for key in ("seconds", "peak_bytes"))  # fmt: skip
            lines.append(
                f"export: {time:.2f} of the time and {memory:.2f} of the memory of {other}"
            )
    for row in variant["folders"]:
        share = _ratio(variant["folders"], OUR_FP32, [row["name"]])
        if share and not row["name"].startswith("vit-export"):
            lines.append(f"photographs: {share}")
    return "".join(f"- {line}\n" for line in lines)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Results, wanted: Sequence[tuple[str, str]]) -> list[str]:
    """Return cells by key and format; in a row that failed, the reason stands first."""
    if "failed" in row:
        reason = str(row["failed"]).replace("|", "\\|")
        return [f"not measured: {reason}", *[""] * (len(wanted) - 1)]
    return [
        size(row[key]) if form == "size" else format(row[key], form) if key in row else "-"
        for key, form in wanted
    ]


def _sessions(variant: Results) -> Iterable[str]:
    wanted = (
        ("ms_per_image", ".4g"), ("cpu_ms_per_image", ".4g"), ("images_per_s", ".3g"),
        ("ratio_to_ours", ".2f"), ("max_abs", ".1e"), ("top1", ".0%"), ("peak_bytes", "size"),
    )  # fmt: skip
    for batch in dict.fromkeys(row["batch"] for row in variant["sessions"]):
        rows = [row for row in variant["sessions"] if row["batch"] == batch]
        headers = [f"batch {batch}", "ms per image", "processor ms", "images/s", "ratio",
                   "`max_abs`", "top 1", "memory"]  # fmt: skip
        yield table(headers, ([row["name"], *_cells(row, wanted)] for row in rows))


def _folders(variant: Results) -> str:
    wanted = (
        ("ms_per_image", ".4g"), ("images_per_s", ".3g"), ("ratio_to_ours", ".2f"),
        ("peak_bytes", "size"), ("same_class", ".0%"),
    )  # fmt: skip
    headers = ["", "ms per photograph", "photographs/s", "ratio", "memory", "same class"]
    return table(headers, ([row["name"], *_cells(row, wanted)] for row in variant["folders"]))


def _exports(variant: Results) -> str:
    wanted = (
        ("seconds", ".1f"), ("cpu_seconds", ".1f"), ("peak_bytes", "size"), ("file_bytes", "size"),
    )  # fmt: skip
    headers = ["", "from", "seconds", "processor seconds", "memory", "file"]
    return table(
        headers,
        ([row["name"], row["after"] or "weights", *_cells(row, wanted)]
         for row in variant["exports"]),
    )  # fmt: skip


def _versions(results: Results) -> str:
    rows = (
        [name, ", ".join(f"{package} {version}" for package, version in versions.items())]
        for name, versions in results["versions"].items()
    )
    return table(["environment", "packages"], rows)
