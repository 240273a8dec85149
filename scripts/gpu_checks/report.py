"""The report as a table for the terminal, JSON and Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_checks.outcome import FAILED, NOT_RUN, PASSED, Check, Outcome

DONE, SOMETHING_FAILED, NOTHING_RAN, INTERRUPTED = 0, 1, 3, 130  # exit status; 2 is wrong usage
SPEED = "speed "


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
    if speeds := _speeds(outcomes):
        header = ("candidate", "batch 1, ms", "batch 64, ms", "images/s", "share of peak", "cosine")
        lines += ["", "## Speed", "", *_table(header, speeds)]
        lines += ["", f"Measured peak: {_number(peak_tflops(outcomes))} TFLOP/s (float16 product)."]
    rows = [(o.name, o.status, _detail(o), f"{o.seconds:.0f}") for o in outcomes]
    lines += ["", "## Checks", "", *_table(("check", "result", "measured, or why not", "s"), rows)]
    return "\n".join(lines) + "\n"


def write(folder: Path, machine: dict[str, Any], outcomes: Sequence[Outcome]) -> list[Path]:
    """Write `report.json` and `report.md`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine,
        "summary": summary(outcomes),
        "peak_tflops": peak_tflops(outcomes),
        "checks": [outcome.to_dict() for outcome in outcomes],
    }
    json_path, markdown_path = folder / "report.json", folder / "report.md"
    json_path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    markdown_path.write_text(to_markdown(machine, outcomes), encoding="utf-8")
    return [json_path, markdown_path]


def _speeds(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    peak = peak_tflops(outcomes)
    rows = []
    for outcome in outcomes:
        if not outcome.name.startswith(SPEED):
            continue
        measured = outcome.measured
        share = measured["tflops"] / peak if peak and "tflops" in measured else None
        rates = [value for name, value in measured.items() if name.endswith("_images_per_s")]
        rows.append((
            outcome.name.removeprefix(SPEED),
            *(_number(measured.get(f"batch_{size}_ms", outcome.status)) for size in (1, 64)),
            _number(max(rates, default=None)),
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
