"""Prove that the gate works: a tree against itself passes, and against a copy with a slower kernel fails."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.compare import (
    CONTROLS,
    MEAN,
    NAMES,
    NO_VERDICT,
    PAIRS,
    PASS,
    SLOWER,
    MeasurementError,
    Tree,
    Verdict,
    compare_trees,
    fill_caches,
    publish,
    report,
)

ROOT = Path(__file__).resolve().parents[1]

# The forward pass of `run` is where slowness is planted: four blocks of five do it twice, or all of them four times.
# XOR, predictions and batches of few rows have code of their own.
FORWARD = re.compile(r"^( *)(forward\(plan, memory\.params, memory\.all_zero, plan\.dropout.*\))$", re.MULTILINE)
SLOWER_1_3 = "2 if row // count % 5 else 1"
SLOWER_2 = "4"
UNTOUCHED = ["XOR", "batch 8, width 32, float32", "predict 1 row", "predict 10,000 rows"]
NAMED = [
    "batch 32, width 32, float32",
    "batch 32, width 128, float64",
    "batch 128, width 128, float32",
]


def plant(tree: Path, times: str) -> None:
    """Copy fastbp into an empty tree, where the kernel `run` does its forward pass so many times."""
    shutil.copytree(ROOT / "fastbp", tree / "fastbp", ignore=shutil.ignore_patterns("__pycache__"))
    kernels = tree / "fastbp" / "kernels.py"
    slowed = rf"\1for again in range({times}):\n\1    \2"
    text, found = FORWARD.subn(slowed, kernels.read_text(encoding="utf-8"))
    if found != 1:
        raise RuntimeError(
            f"kernels.py must have {FORWARD.pattern} once, for there slowness is planted; it has it {found} times"
        )
    kernels.write_text(text, encoding="utf-8")


def is_caught(verdict: Verdict, names: Iterable[str]) -> bool:
    """Whether the verdict on the slowed copy names what is slow, and nothing that is not."""
    named, slowed = set(verdict.slower), set(NAMED).intersection(names)
    return verdict.status == SLOWER and slowed | {MEAN} <= named and named.isdisjoint(UNTOUCHED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of `python -m benchmarks selftest`."""
    parser.add_argument("--quick", action="store_true", help="few cases and pairs, and a copy that is slower still")


def main(arguments: argparse.Namespace) -> int:
    """Compare the tree with itself and with a slowed copy; return PASS if both answers are right."""
    names = [*NAMED[:2], *CONTROLS.names] if arguments.quick else NAMES
    pairs, times = (3, SLOWER_2) if arguments.quick else (PAIRS, SLOWER_1_3)
    with tempfile.TemporaryDirectory() as directory:
        base = Tree(ROOT, str(Path(directory, "base cache")))
        copy = Tree(Path(directory, "copy"), str(Path(directory, "copy's cache")))
        plant(copy.path, times)
        try:
            fill_caches((base, copy), names)
            same = compare_trees(base, base, names, pairs)[1]
            publish(report(same, pairs).replace("head against base", "the tree against itself", 1))
            slowed = compare_trees(base, copy, names, pairs)[1]
            publish(report(slowed, pairs).replace("head against base", "a slowed copy against the tree", 1))
        except MeasurementError as error:
            sys.stderr.write(f"{error}\n")
            return NO_VERDICT
    if same.status == PASS and is_caught(slowed, names):
        publish("\nThe gate works: the tree passes, and the slowed copy is caught.\n")
        return PASS
    if NO_VERDICT in (same.status, slowed.status):
        publish("\nNo verdict on the gate, for there was none above.\n")
        return NO_VERDICT
    publish("\nTHE GATE DOES NOT WORK.\n")
    return SLOWER
