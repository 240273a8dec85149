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
from packaging.requirements import Requirement
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

# Distributions whose module has another name.
DISTRIBUTIONS = {"PIL": "pillow"}
NAMESPACES = {"cuda"}  # its parts are distributions: cuda.core is cuda-core
OPTIONAL = {"pillow-heif"}  # used where the user has installed it; an error names it elsewhere
# Folder -> the extras that install everything it imports, besides the base installation.
EXTRAS = {
    "artifact": (),
    "gate": (),
    "host": ("cpu",),
    "images": ("cpu",),
    "runtime": ("cpu", "tensorrt", "tensorrt-rtx"),
    "model": ("export",),
    "checkpoint": ("export", "hub"),
    "reference": ("export",),
    "training": ("export",),
    "graph": ("export",),
    "engine": ("tensorrt", "tensorrt-rtx"),
    "deploy": (),
    "quantization": ("export", "cpu"),
    "benchmark": ("cpu", "export"),
    "pipeline": ("export", "cpu"),
    "cli": ("bench",),
}


def project() -> dict[str, Any]:
    """Return the content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(extra: str) -> list[Requirement]:
    """Return the requirements of an extra; `""` is the base installation."""
    table = project()["project"]
    lines = table["optional-dependencies"][extra] if extra else table["dependencies"]
    return [Requirement(line) for line in lines]


def names(*extras: str) -> set[str]:
    """Return the distributions that the base installation and some extras install."""
    return {
        requirement.name.removesuffix("-gpu")
        for extra in ("", *extras)
        for requirement in requirements(extra)
    }


def imported_distributions(path: Path) -> set[str]:
    """Return the distributions that a file imports, inside functions too."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    tops = {
        "-".join(parts[: 1 + (parts[0] in NAMESPACES)])
        for parts in (module.split(".") for module in modules)
    } - set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(top, top.replace("_", "-")) for top in tops - {"vit_export"}}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_and_documented(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0].startswith("#!/usr/bin/env ")
    assert re.match(r'# [A-Z]|"""[A-Z]', lines[1]), "the second line says what the script does"
    if lines[0].endswith("bash"):
        assert "set -euo pipefail" in lines
    assert f"`scripts/{script.name}`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_documentation_names_only_scripts_that_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"\bscripts/([\w.-]*\w)", text))
    assert {name for name in named if not (ROOT / "scripts" / name).exists()} == set()


def test_ci_runs_only_scripts_that_contributors_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert all(command.startswith("scripts/") for command in commands)
    assert "scripts/test --all" in commands
    assert "scripts/test --all" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", EXTRAS)
def test_the_extras_of_a_folder_install_what_it_imports(folder: str) -> None:
    imported = {
        name for path in (PACKAGE / folder).rglob("*.py") for name in imported_distributions(path)
    }
    assert imported - names(*EXTRAS[folder]) - OPTIONAL == set()


def test_the_files_at_the_root_of_the_package_need_the_base_installation_only() -> None:
    imported = {name for path in PACKAGE.glob("*.py") for name in imported_distributions(path)}
    assert imported - names() == set()


def test_every_folder_of_the_package_is_tested_for_its_extras() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(EXTRAS)


@pytest.mark.parametrize("backend", OLDEST)
def test_tensorrt_has_one_oldest_version(backend: str) -> None:
    """The extra accepts what the runtime accepts."""
    (requirement,) = [r for r in requirements(backend) if r.name == backend]
    (oldest,) = [s.version for s in requirement.specifier if s.operator == ">="]
    assert Version(oldest) == OLDEST[backend]


def test_every_requirement_has_a_lower_bound() -> None:
    for extra in ("", *project()["project"]["optional-dependencies"]):
        for requirement in requirements(extra):
            assert ">=" in str(requirement.specifier), requirement


def test_constraints_pin_every_package_that_is_developed_and_tested_with() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    pinned = [pin.partition("==")[0].lower().replace("_", "-") for pin in pins]
    assert len(pinned) == len(set(pinned))
    development = {Requirement(line).name for line in project()["dependency-groups"]["dev"]}
    needed = development | names("cpu", "export", "hub", "bench", "tensorrt-rtx")
    assert needed - set(pinned) == set()


def test_the_wheel_contains_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "vit_export", ignore=ignored)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"vit_export-{__version__}-*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    metadata = f"vit_export-{__version__}.dist-info"
    assert {name.split("/")[0] for name in files} == {"vit_export", metadata}
    assert "vit_export/py.typed" in files
    assert f"{metadata}/licenses/LICENSE" in files
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in files if name.endswith(".py")} == modules
