"""Which checks there are, and what they are said to show."""

from __future__ import annotations


def test_every_check_has_a_name_of_its_own():
    """A child process finds its check by it."""
    from gpu_checks.plan import checks

    names = [check.name for check in checks(("ti16", "s16"))]
    assert len(names) == len(set(names))
    assert "cuda parity s16 fp16" in names


def test_the_plan_says_which_checks_run_an_artifact_and_which_need_another():
    """What another makes comes before."""
    from gpu_checks.plan import checks

    found = checks()
    theirs = ("doctor", "refusal", "matmul", "speed GPU: torch", "speed host: torch")
    for check in found:
        assert check.runs_artifact is not check.name.startswith(theirs), check.name
    for place, check in enumerate(found):
        assert not check.after or check.after in [earlier.name for earlier in found[:place]]
        assert bool(check.after) is (
            check.name.startswith(("speed GPU: engine", "speed host: engine"))
            or check.name.endswith(("runtime cache", "capture that fails", "under threads"))
        )


def test_the_printed_plan_names_every_check_its_limit_and_what_it_shows():
    """So that a person can judge a run before it starts."""
    from gpu_checks.plan import checks
    from gpu_checks.report import plan_text

    lines = plan_text(checks()).splitlines()
    assert lines[0].split() == ["check", "limit", "shows"]
    assert len(lines) == 1 + len(checks())
    (line,) = (line for line in lines if line.startswith("speed GPU: torch.compile "))
    assert "  420 s  " in line
    assert "uses CUDA graphs" in line
    for name, shown in (
        ("engine tensorrt-rtx runtime cache ", "writes its kernels to a file"),
        ("engine tensorrt cuda graph capture that fails ", "warns once and runs on"),
        ("engine tensorrt memory under threads ", "leak no memory"),
        ("engine tensorrt-rtx memory under threads ", "leak no memory"),
    ):
        (line,) = (line for line in lines if line.startswith(name))
        assert "  120 s  " in line
        assert shown in line
