"""What a machine can do, as text."""

from __future__ import annotations

from vit_export.host.doctor.types import Diagnosis

TITLES = {
    "system": "System",
    "package": "Packages",
    "gpu": "GPU",
    "library": "NVIDIA libraries",
    "provider": "Providers",
}


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """The diagnosis as a plain text table."""
    lines: list[str] = []
    for topic, title in TITLES.items():
        facts = [fact for fact in diagnosis.facts if fact.topic == topic]
        width = max((len(fact.name) for fact in facts), default=0)
        lines += ["", title] if facts else []
        lines += [f"  {fact.name:{width}}  {fact.value}" for fact in facts]
    lines += ["", "What can be done here"]
    width = max(len(ability.name) for ability in diagnosis.abilities)
    for ability in diagnosis.abilities:
        lines.append(f"  {ability.name:{width}}  {'yes' if ability.possible else 'no'}")
        lines += [f"    {text}" for text in (ability.reason, ability.remedy) if text]
    lines += ["", "Faults" if diagnosis.faults else "No faults."]
    for fault in diagnosis.faults:
        lines += [f"  {fault.what}", f"    fix: {fault.remedy}"]
    return "\n".join(lines[1:])
