"""Code blocks of the Markdown pages, and how a test runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from vit_export.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^```(?P<language>bash|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A shell or Python block of a page.

    Attributes:
        language: `"bash"` or `"python"`.
        code: Its lines.
        line: Where it begins in the page, counted from 1.
        reason: Why no test runs it; empty where one does.
    """

    language: str
    code: str
    line: int
    reason: str = ""


def blocks(page: Path) -> list[Block]:
    """Return the shell and Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=match["language"],
            code=match["code"],
            line=text.count("\n", 0, match.start("code")),
            reason=match["reason"] or "",
        )
        for match in BLOCK.finditer(text)
    ]


def run_page(page: Path) -> None:
    """Run the blocks of a page in order in the current folder; Python blocks share their names.

    `vit-export` commands run in this process, which has loaded torch already; other shell lines
    run in bash.
    """
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.reason:
            continue
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.code  # so that a traceback shows the page's line
            exec(compile(code, page, "exec"), names)
        else:
            for line in block.code.replace("\\\n", " ").splitlines():
                _run_line(line, f"{page.relative_to(ROOT)}:{block.line}")


def _run_line(line: str, place: str) -> None:
    words = shlex.split(line, comments=True)
    if words[:1] == ["vit-export"] and not {"|", ">"} & set(line):
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == 0, f"{place}: {line}\n{result.output}"
    elif words:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{place}: {line}\n{done.stdout}{done.stderr}"
