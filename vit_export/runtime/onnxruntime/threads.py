"""CPU threads of a session: as many as this process may use, and whether they spin while idle."""

import os
from collections.abc import Mapping
from typing import Any

from vit_export.errors import UsageError
from vit_export.host.cpus import allowed_cpus, usable_cpus

MAX_THREADS = 256  # ONNX Runtime starts them all, and a million of them never end starting
THREADS = "intra_op_num_threads"
SPINNING = "session.intra_op.allow_spinning"


def with_threads(session_options: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
    """Return session options with the number of threads that was given; check that number."""
    if threads is not None and not _is_count(threads, least=1):
        raise UsageError(
            f"threads={threads!r}: expected a whole number from 1 to {MAX_THREADS}, or None"
        )
    for name in (THREADS, "inter_op_num_threads"):
        given = session_options.get(name, 0)
        if isinstance(given, int) and not _is_count(given, least=0):
            raise UsageError(
                f"session_options: {name}={given!r}: expected a whole number from 0 (ONNX "
                f"Runtime's choice) to {MAX_THREADS}"
            )
    if threads is None:
        return dict(session_options)
    if THREADS in session_options:
        raise UsageError(f"threads and {THREADS}: expected only one")
    return {**session_options, THREADS: threads}


def default_threads(*, others_open: bool) -> dict[str, Any]:
    """Return the session options that fit this process's share of the machine.

    ONNX Runtime starts a thread for each core of the host, whatever a container's quota and the
    affinity are (microsoft/onnxruntime, issue 29510), and an idle thread of it spins for a while.
    Spinning uses up a quota, and the CPU time of the other sessions of this process
    (`others_open`); docs/performance.md has the measurement.
    """
    options: dict[str, Any] = {}
    cpus = usable_cpus()
    if cpus < (os.cpu_count() or 1):
        options[THREADS] = cpus
    if others_open or cpus < allowed_cpus():
        options[SPINNING] = "0"
    return options


def _is_count(number: object, *, least: int) -> bool:
    return type(number) is int and least <= number <= MAX_THREADS
