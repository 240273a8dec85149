"""The report as a table for the terminal, JSON, Markdown and a plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_checks.outcome import FAILED, NOT_RUN, PASSED, Check, Outcome

DONE, SOMETHING_FAILED, NOTHING_RAN, INTERRUPTED = 0, 1, 3, 130  # exit status; 2 is wrong usage
SPEED = "speed "  # start of a timing's name, before the place and the candidate
PLACES = {"GPU": "images and results on the GPU", "host": "numpy arrays, copies included"}
REPORT, PLOT = "report.json", "speed.png"


def exit_status(outcomes: Sequence[Outcome], checks: Sequence[Check]) -> int:
    """Return 0 only when an artifact ran on the GPU and everything that ran passed."""
    if any(outcome.status == FAILED for outcome in outcomes):
        return SOMETHING_FAILED
    names = {check.name for check in checks if check.runs_artifact}
    ran = any(outcome.status == PASSED and outcome.name in names for outcome in outcomes)
    return DONE if ran else NOTHING_RAN


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the number of checks of each status, in one line."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in (PASSED, FAILED, NOT_RUN))


def peak_tflops(outcomes: Sequence[Outcome]) -> float | None:
    """Return the measured peak; `None` where it was not measured."""
    values = (outcome.measured.get("peak_tflops") for outcome in outcomes)
    return next((value for value in values if value is not None), None)


def to_text(outcomes: Sequence[Outcome]) -> str:
    """Return a line per check: name, status, and figures or the reason."""
    width = max(len(outcome.name) for outcome in outcomes)
    lines = [
        f"{outcome.name.ljust(width)}  {outcome.status.ljust(len(NOT_RUN))}  {_detail(outcome)}"
        for outcome in outcomes
    ]
    return "\n".join([line.rstrip() for line in lines] + ["", summary(outcomes)])


def to_markdown(machine: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Return a page: the machine, the speeds, and every check."""
    lines = ["# GPU report", "", f"{summary(outcomes)}.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    for place, title in PLACES.items():
        if rows := _speeds(outcomes, place):
            header = (
                "candidate", "batch 1, ms", "batch 64, ms", "images/s", "share of peak", "cosine",
            )  # fmt: skip
            lines += ["", f"## Speed: {title}", "", *_table(header, rows)]
    if peak := peak_tflops(outcomes):
        lines += ["", f"Measured peak: {_number(peak)} TFLOP/s (float16 product)."]
    if rates(outcomes):
        lines += ["", f"![Images per second]({PLOT})"]
    rows = [(o.name, o.status, _detail(o), f"{o.seconds:.0f}") for o in outcomes]
    lines += ["", "## Checks", "", *_table(("check", "result", "measured, or why not", "s"), rows)]
    return "\n".join(lines) + "\n"


def write(folder: Path, machine: dict[str, Any], outcomes: Sequence[Outcome]) -> list[Path]:
    """Write `report.json`, `report.md` and, where a speed was measured, its plot."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine,
        "summary": summary(outcomes),
        "peak_tflops": peak_tflops(outcomes),
        "checks": [outcome.to_dict() for outcome in outcomes],
    }
    files = [folder / REPORT, folder / "report.md"]
    files[0].write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    files[1].write_text(to_markdown(machine, outcomes), encoding="utf-8")
    if speeds := rates(outcomes):
        from vit_export.cli.report.pictures import draw_picture

        if not draw_picture(folder / PLOT, plot, speeds):
            files.append(folder / PLOT)
    return files


def passed_before(folder: Path, machine: dict[str, Any]) -> dict[str, Outcome]:
    """Return the checks that passed in an earlier report of the same machine and packages.

    Raises:
        SystemExit: The report is of another machine, or of other versions.
    """
    path = folder / REPORT
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := [name for name in machine if before["machine"].get(name) != machine[name]]:
        raise SystemExit(
            f"--resume: {path} is of another state of this machine ({', '.join(changed)} changed): "
            "run without --resume, or give another --output"
        )
    outcomes = (Outcome(**outcome) for outcome in before["checks"])
    return {outcome.name: outcome for outcome in outcomes if outcome.status == PASSED}


def rates(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, float]]:
    """Return images per second at the smallest and at the largest batch, by candidate."""
    found = {}
    for outcome in outcomes:
        values = [v for name, v in outcome.measured.items() if name.endswith("_images_per_s")]
        if outcome.name.startswith(SPEED) and values:
            found[outcome.name.removeprefix(SPEED)] = (values[0], values[-1])
    return found


def plot(figure: Any, speeds: dict[str, tuple[float, float]]) -> None:
    """Draw images per second of every candidate as bars."""
    from vit_export.cli.report.pictures import COLORS, FONT_SIZE, SIZE_INCHES, style

    figure.set_size_inches(SIZE_INCHES[0], 1.2 + 0.5 * len(speeds))
    axes = figure.add_subplot()
    for index, label in enumerate(("batch 1", "batch 64")):
        rows = [row + 0.2 * (2 * index - 1) for row in range(len(speeds))]
        values = [pair[index] for pair in speeds.values()]
        bars = axes.barh(rows, values, height=0.36, color=COLORS[index], label=label)
        axes.bar_label(bars, fmt="{:.0f}", padding=3, fontsize=FONT_SIZE - 1)
    style(axes, "Images per second in float16; GPU, host: where images and results lie")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(speeds)), list(speeds), parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    figure.legend(fontsize=FONT_SIZE, frameon=False, loc="outside lower right", ncols=2)


def _speeds(outcomes: Sequence[Outcome], place: str) -> list[tuple[str, ...]]:
    peak, start = peak_tflops(outcomes), f"{SPEED}{place}: "
    rows = []
    for outcome in outcomes:
        if not outcome.name.startswith(start):
            continue
        measured = outcome.measured
        share = measured["tflops"] / peak if peak and "tflops" in measured else None
        best = [value for name, value in measured.items() if name.endswith("_images_per_s")]
        rows.append((
            outcome.name.removeprefix(start),
            *(_number(measured.get(f"batch_{size}_ms", outcome.status)) for size in (1, 64)),
            _number(max(best, default=None)),
            "-" if share is None else f"{100 * share:.0f} %",
            _number(measured.get("cosine")),
        ))  # fmt: skip
    return rows


def _detail(outcome: Outcome) -> str:
    if outcome.why:
        return outcome.why
    return ", ".join(f"{name} {_number(value)}" for name, value in outcome.measured.items())


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def plan_text(checks: Sequence[Check]) -> str:
    """Return what every check shows and its limit of time, in the order in which they run."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check'.ljust(width)}  limit  shows"]
    for check in checks:
        shows = (check.function.__doc__ or "").strip().splitlines()[0]
        lines.append(f"{check.name.ljust(width)}  {check.timeout_s:3} s  {shows}")
    return "\n".join(lines)
