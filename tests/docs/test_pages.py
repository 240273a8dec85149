"""Documentation: its code blocks run, its links lead somewhere, its generated pages are current."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from markdown_pages import PAGES, ROOT, blocks, run_page

from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.export import ExportResult

# Why a block is not run. Everything else in a shell or Python block is.
REASONS = {
    "installs packages",
    "takes minutes",
    "needs the network",
    "needs an NVIDIA GPU",
    "an excerpt",
}
