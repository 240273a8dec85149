"""The three stages of a variant: exports, sessions in turns, folders in turns."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from peers.candidates import EXPORTS, Export, Session
from peers.environments import NotInstalled
from peers.process import Failed, Worker, run

Row = dict[str, Any]
REFERENCE_IMAGES = 8
FOLDER_TURNS = 3  # at most: each takes long


@dataclass(frozen=True)
class Plan:
    """One variant, where its files are, and how long each candidate is timed."""

    variant: str
    facts: Mapping[str, Any]  # of the variant: embed_dim, num_heads, img_size
    folder: Path
    pythons: Mapping[str, Path | str]  # environment to its interpreter, or why there is none
    threads: int
    export_turns: int
    rounds: int
    turn_s: float
    at_once: int  # processes in memory together

    @property
    def inputs(self) -> dict[str, str]:
        """What every candidate gets."""
        return {
            "variant": self.variant,
            "weights": str(self.folder / "weights.safetensors"),
            "hugging_face": str(self.folder / "hugging_face"),
            "photographs": str(self.folder / "photographs"),
            **{name: str(value) for name, value in self.facts.items()},
        }

    @property
    def reference(self) -> str:
        """Pixel values and float64 logits."""
        return str(self.folder / "reference.npz")

    def python(self, environment: str) -> Path:
        """Return an interpreter; raises NotInstalled where pip failed."""
        found = self.pythons[environment]
        if isinstance(found, str):
            raise NotInstalled(found)
        return found


def say(text: str) -> None:
    """Tell what is being done."""
    print(text, file=sys.stderr, flush=True)


def prepare(plan: Plan, photographs: int) -> None:
    """Write weights, photographs and the float64 reference."""
    say(f"{plan.variant}: weights, photographs, float64 reference")
    inputs = plan.inputs
    ours = [sys.executable, "-m", "peers.materials", plan.variant, plan.folder, photographs]
    run(ours, plan.threads)
    theirs = [sys.executable, "-m", "peers.reference", plan.variant]  # scripts/setup has timm
    run(
        [*theirs, inputs["weights"], inputs["photographs"], REFERENCE_IMAGES, plan.reference],
        plan.threads,
    )


def measure_exports(plan: Plan, exports: Sequence[Export]) -> list[Row]:
    """Run every export, all of them once per round; return the fastest of each."""
    rows = {export.name: {"name": export.name, "after": export.after} for export in exports}
    for turn in range(plan.export_turns):
        for export in exports:
            row = rows[export.name]
            if "failed" in row:
                continue
            say(f"{plan.variant}: export {turn + 1}, {export.name}")
            try:
                found = _export(plan, export)
            except (Failed, NotInstalled) as error:
                row["failed"] = str(error)
                say(f"  {error}")
                continue
            if found["seconds"] < row.get("seconds", float("inf")):
                row |= found
    return list(rows.values())


def _export(plan: Plan, export: Export) -> Row:
    python, output = plan.python(export.environment), plan.folder / export.file
    output.parent.mkdir(parents=True, exist_ok=True)
    after = next((e.file for e in EXPORTS if e.name == export.after), "")
    if after and not (plan.folder / after).exists():
        raise Failed(f"needs the file of {export.after}")
    words = {
        **plan.inputs, "python": python, "bin": python.parent, "output": output,
        "output_folder": output.parent, "after": plan.folder / after,
    }  # fmt: skip
    found = run([word.format(**words) for word in export.command], plan.threads)
    weights = output.with_suffix(".bin") if output.suffix == ".xml" else output
    return {**found, "file_bytes": weights.stat().st_size}


@dataclass
class Entrant:
    """A candidate in its process, and the seconds of its runs, by round."""

    session: Session
    worker: Worker | None = None
    row: Row = field(default_factory=dict)
    turns: list[list[float]] = field(default_factory=list)
    cpu_turns: list[float] = field(default_factory=list)  # processor seconds of a run, by round

    def ask(self, order: str, **arguments: Any) -> Row:
        """Give an order, unless an earlier one failed: the reason is kept for the row."""
        if "failed" in self.row or self.worker is None:
            return {}
        try:
            return self.worker.ask(order, **arguments)
        except Failed as error:
            self.row["failed"] = str(error)
            say(f"  {self.session.name}: {error}")
            return {}


def heats(sessions: Sequence[Session], at_once: int) -> Iterable[list[Session]]:
    """Split candidates into heats that fit in memory; the first candidate is in each."""
    first, *others = sessions
    for start in range(0, len(others), at_once - 1):
        yield [first, *others[start : start + at_once - 1]]


@contextlib.contextmanager
def started(plan: Plan, sessions: Sequence[Session]) -> Iterable[list[Entrant]]:
    """Load candidates, one after the other, and end their processes afterwards."""
    with contextlib.ExitStack() as stack:
        entrants = []
        for session in sessions:
            entrant = Entrant(session, row={"name": session.name})
            entrants.append(entrant)
            say(f"{plan.variant}: load {session.name}")
            try:
                python = plan.python(session.environment)
                arguments = _arguments(plan, session)
            except (Failed, NotInstalled) as error:
                entrant.row["failed"] = str(error)
                continue
            entrant.worker = Worker(python, f"peers.{session.module}", plan.threads)
            stack.callback(entrant.worker.close)
            entrant.ask("load", threads=plan.threads, **arguments)
        yield entrants


def _arguments(plan: Plan, session: Session) -> dict[str, Any]:
    filled = {
        key: value.format(**plan.inputs) if isinstance(value, str) else value
        for key, value in session.arguments.items()
    }
    if session.export:
        file = plan.folder / next(e.file for e in EXPORTS if e.name == session.export)
        if not file.exists():
            raise Failed(f"the export of {session.export} failed")
        filled["path"] = str(file)
    return filled


def take_turns(plan: Plan, entrants: Sequence[Entrant], turn: Callable[[Entrant], Row]) -> None:
    """Let every candidate run once per round: a busy moment slows all of them."""
    for entrant in entrants:
        entrant.turns, entrant.cpu_turns = [], []
    for number in range(plan.rounds):
        say(f"{plan.variant}: round {number + 1} of {plan.rounds}")
        for entrant in entrants:
            if found := turn(entrant):
                entrant.turns.append(found["seconds"])
                entrant.cpu_turns.append(found["cpu_seconds"])
                entrant.row["peak_bytes"] = found["peak_bytes"]


def result(entrant: Entrant, ours: Entrant, images: int) -> Row:
    """Return milliseconds per image, images per second, and the ratio to ours, round by round."""
    if "failed" in entrant.row:
        return dict(entrant.row)
    seconds = [median(turn) for turn in entrant.turns]
    row = {
        **entrant.row,
        "ms_per_image": 1e3 * median(seconds) / images,
        "cpu_ms_per_image": 1e3 * median(entrant.cpu_turns) / images,
        "images_per_s": images / median(seconds),
        "runs": sum(map(len, entrant.turns)),
        "round_seconds": seconds,
    }
    if len(ours.turns) == len(entrant.turns):
        pairs = zip(seconds, map(median, ours.turns), strict=True)
        row["ratio_to_ours"] = median(own / our for own, our in pairs)
    return row


def measure_sessions(plan: Plan, sessions: Sequence[Session], batches: Sequence[int]) -> list[Row]:
    """Time every session at every batch size, and its error; a row for each."""
    rows: dict[tuple[int, str], Row] = {}
    for heat in heats(sessions, plan.at_once):
        with started(plan, heat) as entrants:
            for entrant in entrants:
                entrant.row |= entrant.ask("error", reference=plan.reference)
            for batch in batches:
                say(f"{plan.variant}: batch {batch}")
                for entrant in entrants:
                    entrant.ask("take", inputs=plan.reference, batch=batch)
                take_turns(plan, entrants, lambda e: e.ask("time", seconds=plan.turn_s))
                for entrant in entrants:
                    row = {"batch": batch, **result(entrant, entrants[0], batch)}
                    rows.setdefault((batch, row["name"]), row)
    return [rows[batch, session.name] for batch in batches for session in sessions]


def measure_folders(plan: Plan, sessions: Sequence[Session], images: int) -> list[Row]:
    """Time every way to classify the folder of photographs; the first one includes the start."""
    plan = replace(plan, rounds=min(plan.rounds, FOLDER_TURNS))
    with started(plan, sessions) as entrants:
        expected: list[int] = []  # of the first that answers, which is vit-export
        for entrant in entrants:
            found = entrant.ask("take", inputs=plan.inputs["photographs"], batch=None)
            if not found:
                continue
            expected = expected or found["classes"]
            if len(found["classes"]) != images:
                entrant.row["failed"] = (
                    f"classified {len(found['classes'])} of {images} photographs"
                )
                continue
            pairs = zip(found["classes"], expected, strict=True)
            entrant.row["same_class"] = sum(a == b for a, b in pairs) / images
        take_turns(plan, entrants, lambda e: e.ask("time_folder"))
        return [result(entrant, entrants[0], images) for entrant in entrants]
