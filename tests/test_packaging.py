"""The project around the code: what is installed, documented and shipped."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from vit_export import __version__
from vit_export.runtime.tensorrt.backend import OLDEST

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vit_export"
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())

# Distribution of a module, where it is not called the same.
DISTRIBUTIONS = {"PIL": "pillow", "cuda": "cuda-bindings"}
# Part of the package -> extras that install what it imports.
SIDES = {
    "": ["cpu", "export", "hub", "bench"],  # doors and the files beside them
    "model": ["export", "hub"],
    "graph": ["export", "cpu"],
    "quantization": ["export", "cpu"],
    "runtime": ["cpu", "tensorrt", "tensorrt-rtx"],
    "engine": ["tensorrt", "tensorrt-rtx"],
    "deploy": ["cpu"],
    "commands": [],
    "doctor": [],
    "report": ["bench"],
}
# These run where `cpu` or `gpu` is all that is installed.
DEVICE_FILES = (
    "golden.py", "manifest.py", "onnxfile.py", "probe.py", "nvidia.py", "validate.py",
    "benchmark.py", "candidates.py", "child.py", "machine.py", "stopwatch.py",
)  # fmt: skip


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def readme() -> str:
    """The text of README.md."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def requirements(extra: str) -> dict[str, str]:
    """Distribution -> oldest version that the extra accepts; `""` is the base installation."""
    table = project()["project"]
    lines = table["optional-dependencies"][extra] if extra else table["dependencies"]
    matches = (re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", line) for line in lines)
    return {match[1]: match[2] for match in matches if match}


def third_party(path: Path) -> set[str]:
    """Distributions that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(top, top.replace("_", "-")) for top in tops - {"vit_export"}}


def tree(text: str) -> dict[str, str]:
    """Read a layout tree: path relative to its root -> description.

    Each line is `│   ├── name   description`, and a name that ends in `/` is a folder.
    """
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in text.splitlines():
        match = re.match(r"((?:│   |    )*)[├└]── (\S+)\s*(.*)", line)
        if not match:
            continue
        depth = len(match[1]) // 4
        folders[depth:] = [match[2]]
        entries["".join(folders[: depth + 1])] = match[3].strip()
    return entries


def readme_tree() -> dict[str, str]:
    """The layout that README.md shows."""
    block = re.search(r"```\w*\n(vit_export/\n.*?)```", readme(), flags=re.DOTALL)
    assert block, "README.md has no fenced block that begins with vit_export/"
    return tree(block[1])


def test_the_tree_parser_sees_nesting() -> None:
    """A folder's files carry its name; a folder behind them does not."""
    text = "p/\n├── a.py   first\n├── b/     a folder\n│   └── c.py  inner\n└── d/     last\n"
    assert tree(text) == {"a.py": "first", "b/": "a folder", "b/c.py": "inner", "d/": "last"}


def test_the_readmes_layout_is_what_lies_on_disk() -> None:
    """Every module and folder is in the tree, and nothing else; a folder may stay closed."""
    listed = readme_tree()
    opened = {path.rpartition("/")[0] + "/" for path in listed if not path.endswith("/")}
    on_disk = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        folder = name.rpartition("/")[0] + "/"
        if folder != "/":
            on_disk.add(folder)
        if folder in opened and not (folder != "/" and path.name == "__init__.py"):
            on_disk.add(name)
    plain = {path for path in listed if path.count("/") == 0 or not path.endswith("__init__.py")}
    assert sorted(plain) == sorted(on_disk)


def test_every_line_of_the_readmes_layout_says_what_it_is() -> None:
    """A name alone tells a newcomer too little."""
    assert [path for path, description in readme_tree().items() if not description] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_runs_says_what_it_does_and_is_in_the_readme(script: Path) -> None:
    """Somebody who opens the folder or the README finds the same commands."""
    lines = script.read_text(encoding="utf-8").splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0].startswith("#!/usr/bin/env ")
    assert re.match(r'# [A-Z]|"""[A-Z]', lines[1]), "the second line says what the script does"
    if lines[0].endswith("bash"):
        assert "set -euo pipefail" in lines
    assert f"scripts/{script.name}" in readme()


def test_the_readme_names_only_scripts_that_exist() -> None:
    """A renamed script is renamed there too."""
    named = set(re.findall(r"\bscripts/([\w.-]*\w)", readme()))
    assert named - {script.name for script in SCRIPTS} == set()


def test_ci_runs_what_the_readme_tells_a_contributor_to_run() -> None:
    """CI has no commands of its own, and the README's test command is among them."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert all(command.startswith("scripts/") for command in commands)
    assert "scripts/test --all" in commands
    assert "scripts/test --all" in readme()


@pytest.mark.parametrize("side", SIDES)
def test_the_extras_of_each_side_cover_its_imports(side: str) -> None:
    """`pip install 'vit-export[...]'` leaves no import unmet."""
    files = (PACKAGE / side).rglob("*.py") if side else PACKAGE.glob("*.py")
    imported = {name for path in files for name in third_party(path)}
    covered = {name for extra in ["", *SIDES[side]] for name in requirements(extra)}
    assert imported - covered == set()


def test_every_folder_of_the_package_has_a_side() -> None:
    """A new folder says which extras install what it imports."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - set(SIDES) == set()


def test_the_device_side_needs_no_more_than_the_cpu_extra() -> None:
    """numpy, click, onnxruntime and pillow are enough to validate and to predict."""
    files = [PACKAGE / name for name in DEVICE_FILES] + [
        path
        for folder in ("runtime", "doctor")
        for path in (PACKAGE / folder).rglob("*.py")
        if path.name != "device.py"
    ]
    imported = {name for path in files for name in third_party(path)}
    assert imported - {*requirements(""), *requirements("cpu")} == set()


@pytest.mark.parametrize("backend", OLDEST)
def test_tensorrt_has_one_oldest_version(backend: str) -> None:
    """What is installed, what the doctor finds new enough and what is loaded."""
    assert Version(requirements(backend)[backend]) == OLDEST[backend]


def test_every_declared_extra_is_read_by_these_tests() -> None:
    """A requirement that the pattern above cannot read would pass unseen."""
    table = project()["project"]
    for extra, lines in {"": table["dependencies"], **table["optional-dependencies"]}.items():
        assert len(requirements(extra)) == len(lines)


def test_every_constraint_is_exact() -> None:
    """The versions that are tested are the same everywhere."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    names = [pin.partition("==")[0].lower().replace("_", "-") for pin in pins]
    assert len(names) == len(set(names))
    development = project()["dependency-groups"]["dev"]
    needed = {re.split(r"[>=\[]", line)[0] for line in development}
    extras = ("", "cpu", "export", "hub", "bench", "tensorrt-rtx")
    needed |= {name for extra in extras for name in requirements(extra)}
    assert needed - set(names) == set()


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """It is typed and licensed, and brings neither tests nor scripts."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "vit_export", ignore=ignored)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"vit_export-{__version__}-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "vit_export",
        f"vit_export-{__version__}.dist-info",
    }
    assert "vit_export/py.typed" in names
    assert f"vit_export-{__version__}.dist-info/licenses/LICENSE" in names
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
