"""scripts/token_merging: its page has the figures of real exports and real turns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "token_merging"


@pytest.mark.slow
def test_it_writes_both_tables_of_a_small_model(tmp_path):
    """As it is typed, with one R and one short round."""
    page = tmp_path / "page.md"
    options = ["--variant", "mnist", "--sizes", "28", "--pairs", "4", "--rounds", "1"]
    line = [sys.executable, str(SCRIPT), *options, "--seconds", "0.01", "--output", str(page)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text in done.stdout
    command = "scripts/token_merging " + " ".join([*options, "--seconds", "0.01"])
    assert f"```bash\n{command}\n```" in text
    digits, large = (
        [line.strip("| ").split(" | ") for line in part.splitlines() if re.match(r"\| \d", line)]
        for part in text.partition("## mnist, 28 px")[::2]
    )
    assert [row[:2] for row in digits] == [["0", "50"], ["4", "38"]]
    assert [row[0] for row in large] == ["0", "4"]
    assert digits[0][2] == "-"
    assert 90 < float(digits[1][2]) <= 100
    assert 95 < float(digits[0][3]) <= 100
    assert digits[0][5] == large[0][2] == "1.00"
    assert all(float(x) > 0 for row in digits for x in row[5:])
