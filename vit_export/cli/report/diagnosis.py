"""Result of `vit-export doctor` as text."""

from __future__ import annotations

from vit_export.cli.report.tables import pairs
from vit_export.host.doctor.abilities import Diagnosis

TITLES = {
    "system": "System",
    "package": "Packages",
    "gpu": "GPU",
    "library": "NVIDIA libraries",
    "provider": "Providers",
}


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
