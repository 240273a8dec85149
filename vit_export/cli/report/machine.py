"""What a machine has and can run, and how fast artifacts run on it, as text."""

from collections.abc import Sequence

from vit_export.benchmark.run import Row
from vit_export.cli.report.tables import cell, pairs, size, table
from vit_export.host.doctor.abilities import Diagnosis
from vit_export.host.machine import Machine

TITLES = {  # topic of a fact -> title of its section
    "system": "System",
    "package": "Packages",
    "gpu": "GPU",
    "library": "NVIDIA libraries",
    "provider": "Providers",
}
HEADERS = (
    *("candidate", "on", "batch", "median ms", "IQR ms", "runs", "images/s"),
    *("speedup", "load s", "peak MB", "file MB", "max|y-y64|"),
)


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Return what a machine has, what it can run, and how to fix each problem."""
    lines: list[str] = []
    for topic, title in TITLES.items():
        facts = [(f"  {fact.name}", fact.value) for fact in diagnosis.facts if fact.topic == topic]
        if facts:
            lines += [title, pairs(facts), ""]
    lines.append("What this machine can run")
    width = max(len(ability.name) for ability in diagnosis.abilities)
    for ability in diagnosis.abilities:
        lines.append(f"  {ability.name:{width}}  {'yes' if ability.possible else 'no'}")
        lines += [f"    {text}" for text in (ability.reason, ability.remedy) if text]
    lines += ["", "Problems" if diagnosis.faults else "No problems."]
    for fault in diagnosis.faults:
        lines += [f"  {fault.what}", f"    fix: {fault.remedy}"]
    return "\n".join(lines)


def benchmark_text(machine: Machine, threads: int | None, rows: Sequence[Row]) -> str:
    """Return the machine, a table of all rows, and every note and error."""
    lines = [machine_line(machine, threads), "", table(HEADERS, map(_cells, rows))]
    if any(row.speedup is not None for row in rows):
        lines.append(f"speedup: times as fast as {rows[0].name} on {rows[0].provider}, same batch")
    if machine.busy:
        loads = {"before": machine.load_average, "at the end": machine.others_after}
        others = ", ".join(f"{load:.1f} {when}" for when, load in loads.items() if load is not None)
        lines.append(
            f"note: other programs were using the machine (processes on {machine.cores} cores: "
            f"{others}): do not rely on these times"
        )
    remarks: dict[str, None] = {}  # a candidate has the same note at every batch size
    for row in rows:
        title = f"{row.name} on {row.provider}"
        remarks |= {f"{title}: note: {note}": None for note in row.notes}
        if row.error:
            remarks[f"{title}, batch {row.batch}: NOT RUN: {row.error}"] = None
    return "\n".join([*lines, *remarks])


def machine_line(machine: Machine, threads: int | None) -> str:
    """Return processor, GPUs, memory, threads and versions in one line."""
    parts = [f"{machine.processor}, {machine.cores} cores"]
    if machine.memory_bytes is not None:
        parts.append(size(machine.memory_bytes))
    parts += [*machine.gpus, machine.system]
    parts.append(f"threads: {'default' if threads is None else threads}")
    if machine.load_average is not None:
        parts.append(f"load {machine.load_average:.2f}")
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{'; '.join(parts)}; {versions}"


def _cells(row: Row) -> tuple[object, ...]:
    return (
        row.name,
        row.provider,
        row.batch,
        _fixed(row.median_ms),
        _fixed(row.iqr_ms),
        row.runs or None,
        _fixed(row.images_per_s),
        _fixed(row.speedup),
        _fixed(row.load_s),
        _fixed(None if row.peak_rss_bytes is None else row.peak_rss_bytes / 1e6),
        _fixed(None if row.file_bytes is None else row.file_bytes / 1e6),
        cell(row.max_abs) + (" FAILED" if row.accepted is False else ""),
    )


def _fixed(value: float | None) -> str:
    """Return a number without exponent: three digits from 1 on, thousandths below."""
    if value is None:
        return "-"
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"
