"""Fail if fastbp is not as many times as fast as NumPy as `floors.toml` asks: `python -m benchmarks floors`."""

from __future__ import annotations

import argparse
import json
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cases import CASES, calibrate
from benchmarks.compare import NO_VERDICT, PASS, SLOWER, MeasurementError, Tree, publish, python
from benchmarks.gate_cases import clock
from benchmarks.peers import with_backend
from benchmarks.report import entries_of, markdown, section_of

HERE = Path(__file__).resolve().parent
FLOORS: dict[str, float] = tomllib.loads((HERE / "floors.toml").read_text(encoding="utf-8"))["floors"]
LIBRARIES = {"fastbp": "numba", "numpy": "numpy"}  # and their backends
ROUNDS = 5  # the best of them counts


class Row(NamedTuple):
    """The ratio of a case to NumPy, and the one measured before if that was too low."""

    floor: float
    ratio: float
    before: float | None = None

    @property
    def failed(self) -> bool:
        """Whether fastbp is too slow."""
        return not self.ratio >= self.floor


def ratios_in(file: Path) -> dict[str, float]:
    """Return fastbp's epochs per second as a multiple of NumPy's, for the cases in a JSON of pytest-benchmark."""
    entries = section_of(entries_of(json.loads(file.read_text(encoding="utf-8"))), "training")
    return {
        entry["case"]: entry["figures"]["fastbp"] / entry["figures"]["numpy"]
        for entry in entries
        if all(library in entry["figures"] for library in LIBRARIES)
    }


def ratio(name: str) -> float:
    """Measure one case here and now, the libraries in turn."""
    # Freeing 30 MB teaches the C library to keep memory. In a new process it would hand each large temporary array of
    # NumPy back, and get it back page by page, which can take as long as the arithmetic.
    np.empty(30_000_000, np.uint8)
    trainers = {library: with_backend(backend, CASES[name], threads=1) for library, backend in LIBRARIES.items()}
    epochs = {library: calibrate(train) for library, train in trainers.items()}
    seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for _ in range(ROUNDS):
        for library, train in trainers.items():
            began = clock()
            train(epochs[library])
            seconds[library].append((clock() - began) / epochs[library])
    return min(seconds["numpy"]) / min(seconds["fastbp"])


def ratio_in_new_process(name: str, cache: str) -> float:
    """Measure one case with one thread, for which NumPy must be told before it is imported."""
    code = f"from benchmarks.floors import ratio; print(ratio({name!r}))"
    return float(python(Tree(HERE.parent, cache), ["-c", code]))


def judge(floors: Mapping[str, float], ratios: Mapping[str, float], measure: Callable[[str], float]) -> dict[str, Row]:
    """Hold each case against its floor; what has no ratio is measured, and what is too low once more."""
    rows = {}
    for name, floor in floors.items():
        row = Row(floor, ratios[name] if name in ratios else measure(name))
        rows[name] = Row(floor, measure(name), row.ratio) if row.failed else row
    return rows


def report(rows: Mapping[str, Row]) -> str:
    """Write a table in Markdown."""
    failed = [name for name, row in rows.items() if row.failed]
    text = f"## Floors, fastbp against NumPy: {'too slow' if failed else 'pass'}\n\n"
    return text + markdown(
        ["case", "times as fast as NumPy", "floor", "ratio / floor", ""],
        [
            [
                name, f"{row.ratio:.2f}", f"{row.floor:g}", f"{row.ratio / row.floor:.2f}",
                "TOO SLOW" if row.failed else "" if row.before is None else f"at first {row.before:.2f}",
            ]
            for name, row in rows.items()
        ],
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument of `python -m benchmarks floors`."""
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE.json",
        help="what pytest --benchmark-only --benchmark-json=FILE.json wrote; without it all cases are measured",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    """Check all floors and publish the table."""
    ratios = ratios_in(arguments.file) if arguments.file else {}
    with tempfile.TemporaryDirectory() as cache:
        try:
            rows = judge(FLOORS, ratios, lambda name: ratio_in_new_process(name, cache))
        except MeasurementError as error:
            publish(f"## Floors, fastbp against NumPy: not measured\n\n{error}\n")
            return NO_VERDICT
    publish(report(rows))
    return SLOWER if any(row.failed for row in rows.values()) else PASS
