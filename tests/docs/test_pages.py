"""Documentation: its blocks run, its generated page is current, its layout trees are the disk."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from markdown_pages import PAGES, ROOT, blocks, run_page
from originals import TORCHVISION  # noqa: F401  (a page needs timm)
from PIL import Image

from vit_export.checkpoint.own import save_checkpoint
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.export import ExportResult
from vit_export.variants import VARIANTS

REASONS = {
    "an excerpt", "installs packages", "needs an NVIDIA GPU", "needs the network", "takes minutes",
}  # fmt: skip
FAST = (
    *("README.md", "docs/concepts/gate.md", "docs/concepts/golden.md"),
    *("docs/concepts/manifest.md", "docs/guides/runtime.md"),
)
ELSEWHERE = {"docs/guides/cpp.md"}  # needs a compiler: tests/deploy/test_guide.py runs it
WITH_BLOCKS = [page for page in PAGES if any(not block.reason for block in blocks(page))
               and page.relative_to(ROOT).as_posix() not in ELSEWHERE]  # fmt: skip
PACKAGE = ROOT / "vit_export"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_export: ExportResult,
    make_model: Callable[..., VisionTransformer],
    photographs: list[Path],
) -> Path:
    """A current folder with the files that the pages name; `b16` is a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = make_model()
    tiny = model.config.replace({"variant": "vit_base_patch16_224", "alias": "b16"})
    monkeypatch.setitem(VARIANTS, "vit_base_patch16_224", tiny)
    for name in ("b16", "model"):
        shutil.copy(tiny_export.path, f"{name}.onnx")
        shutil.copy(tiny_export.golden, f"{name}.golden.npz")
    save_checkpoint(model, Path("model.safetensors"))
    shutil.copy(photographs[0], "photo.jpg")
    Path("labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    random = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(8):
        pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.jpg")
    for label, brightness in (("cat", 0), ("dog", 128)):
        Path("classes", label).mkdir(parents=True)
        for number in range(10):
            pixels = brightness + random.integers(0, 100, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels.astype(np.uint8)).save(f"classes/{label}/{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if name(page) in FAST else pytest.mark.slow)
        for page in WITH_BLOCKS
    ],
    ids=name,
)
def test_every_block_of_a_page_runs(page, folder):
    run_page(page)


def test_blocks_that_are_not_run_have_a_known_reason():
    reasons = {
        f"{name(page)}:{block.line}": block.reason
        for page in PAGES
        for block in blocks(page)
        if block.reason
    }
    assert {place: why for place, why in reasons.items() if why not in REASONS} == {}
    for page in PAGES:  # a marker that stands before nothing would hide a mistake
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- not run:") == sum(bool(b.reason) for b in blocks(page)), page


def test_the_command_line_reference_is_what_the_commands_print():
    script = runpy.run_path(str(ROOT / "scripts" / "cli-reference"))
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == script["reference"](), "run scripts/cli-reference"


def layout_tree(page: str) -> dict[str, str]:
    """Return the names in a page's layout tree, with their descriptions."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"```text\n(vit_export/\n.*?)```", text, flags=re.DOTALL)
    assert block, f"{page} has no block that begins with vit_export/"
    lines = re.findall(r"^[├└]── (\S+) +(\S.*)$", block[1], flags=re.MULTILINE)
    assert len(lines) == block[1].count("\n") - 1, "a line of the tree lacks a description"
    return dict(lines)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_layout_tree_is_the_disk(page):
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    files = {path.name for path in PACKAGE.glob("*.py")}
    assert set(layout_tree(page)) == folders | files


def test_contributing_names_only_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("## Where do I put X") : text.index("## Import rules")]
    paths = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(paths) > 10
    missing = [
        path
        for path in paths
        if not (PACKAGE / path.replace("NAME", "onnx")).exists() and path != "options.py"
    ]
    assert missing == []


def test_the_accuracy_of_the_digits_model_is_the_recorded_one():
    results = json.loads((ROOT / "scripts" / "digits" / "accuracy.json").read_text())
    page = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    for result in results:
        seed, correct, tested = (result[key] for key in ("seed", "correct", "tested"))
        assert (
            f"| {seed} | {correct} of {tested} | {correct / tested:.1%} |".replace("%", " %")
            in page
        )


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_link_to_a_file_leads_somewhere():
    broken = [
        f"{name(page)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
