"""Trains the digits model, exports it, and measures its accuracy; scripts/train_digits runs it.

The recipe was chosen by validation accuracy. Test images serve for nothing but the last figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from data import load_scans, split, write_csvs, write_examples

import vit_export

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
NAME = "digits"
MODEL = ("--variant", "vit_mnist_28", "--set", "embed_dim=64", "--set", "depth=4",
         "--set", "num_heads=4")  # fmt: skip
RECIPE = ("--epochs", "40", "--batch-size", "32", "--learning-rate", "0.002")


def run(*arguments: object) -> dict:
    """Run a command of vit-export, show what it prints, and return its JSON."""
    words = [sys.executable, "-m", "vit_export", *map(str, arguments), "--json"]
    print("\n$ vit-export", *map(str, arguments), flush=True)
    # one thread: with more, sums are rounded in another order and the weights differ
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def test_accuracy(artifact: Path) -> tuple[int, int]:
    """Return how many test scans an artifact recognises, and how many there are."""
    scans, targets = load_scans()
    _, test = split(targets)
    with vit_export.load(artifact, provider="cpu") as model:
        found = model.classify([scans[row] for row in test], top=1)
    correct = [top[0].index == targets[row] for top, row in zip(found, test, strict=True)]
    return int(sum(correct)), len(test)


def train(folder: Path, seed: int, options: list[str]) -> dict:
    """Train with one seed and export; return the accuracies."""
    folder.mkdir(parents=True, exist_ok=True)
    learn, _ = write_csvs(folder)
    checkpoint, artifact = folder / f"{NAME}.safetensors", folder / f"{NAME}.onnx"
    best = run("finetune", *MODEL, "--data", learn, *RECIPE, "--seed", seed,
               "-o", checkpoint, *options)["best"]  # fmt: skip
    run("onnx", "--weights", checkpoint, "-o", artifact)
    correct, tested = test_accuracy(artifact)
    print(
        f"seed {seed}: {best['val_accuracy']:.2%} of the validation scans, "
        f"{correct / tested:.2%} of the test scans ({correct} of {tested}) recognised",
        flush=True,
    )
    return {"seed": seed, "validation": best["val_accuracy"], "correct": correct, "tested": tested}


def main() -> None:
    """Train with one seed, or with three and publish the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/digits"))
    parser.add_argument("--seed", type=int, default=SEEDS[0])
    parser.add_argument(
        "--publish",
        action="store_true",
        help=f"Train with seeds {SEEDS}; write the accuracies, and the first checkpoint, here.",
    )
    asked, options = parser.parse_known_args()
    if not asked.publish:
        train(asked.folder, asked.seed, options)
        return
    results = [train(asked.folder / f"seed{seed}", seed, options) for seed in SEEDS]
    shutil.copy(asked.folder / f"seed{SEEDS[0]}" / f"{NAME}.safetensors", HERE)
    write_examples(HERE / "scans")
    (HERE / "accuracy.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
