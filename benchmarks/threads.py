"""Fail if "auto" takes longer than one thread, on all cores or beside a stranger: `python -m benchmarks threads`.

Training and predictions of `cases.py`, the two in turns, seven rounds, of which the median counts; on a machine that
does nothing else. What fails is measured once more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

from benchmarks.cases import CASES, PREDICTIONS
from benchmarks.compare import PASS, SLOWER, publish
from benchmarks.peers import fastbp_predictor, repeated, with_backend
from benchmarks.report import markdown
from benchmarks.turns import in_turns

LIMIT, LIMIT_WITH_STRANGER = 1.03, 1.10  # of the time of one thread
STRANGER = "while True: pass"


@contextlib.contextmanager
def stranger() -> Iterator[None]:
    """Keep one of the cores busy, the last."""
    process = subprocess.Popen([sys.executable, "-c", STRANGER])
    try:
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        yield
    finally:
        process.kill()
        process.wait()


def runs_of(name: str) -> dict[str, Callable[[int], object]]:
    """Return what is to be timed: a case with "auto", which takes the place of fastbp, and with one thread."""
    if name in PREDICTIONS:
        make = functools.partial(fastbp_predictor, PREDICTIONS[name])
        return {"fastbp": repeated(make(threads="auto")), "one thread": repeated(make(threads=1))}
    make_trainer = functools.partial(with_backend, "numba", CASES[name])
    return {"fastbp": make_trainer(threads="auto"), "one thread": make_trainer(threads=1)}


def times(name: str) -> list[float]:
    """Measure the time that "auto" takes, of that of one thread, round by round."""
    return sorted(1 / ratio for ratio in in_turns(runs_of(name)).ratios["one thread"])


def judge(names: Iterable[str], limit: float, measure: Callable[[str], list[float]]) -> tuple[str, bool]:
    """Write a table in Markdown, and say whether all cases pass."""
    rows, medians = [], []
    for name in names:
        measured = measure(name)
        if statistics.median(measured) > limit:
            measured = measure(name)
        medians.append(statistics.median(measured))
        verdict = "SLOWER" if medians[-1] > limit else ""
        rows.append([name, *(f"{x:.3f}" for x in (medians[-1], measured[0], measured[-1])), verdict])
    passed = max(medians) <= limit
    mean = math.exp(statistics.fmean(map(math.log, medians)))
    text = f"{'pass' if passed else 'slower'}, limit {limit}; most {max(medians):.3f}, geometric mean {mean:.3f}.\n\n"
    return text + markdown(["case", "auto / one thread", "least", "most", ""], rows), passed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks threads`."""
    parser.add_argument("--stranger", action="store_true", help="keep one core busy meanwhile (Linux)")
    parser.add_argument("-k", default="", metavar="WORDS", help="of the cases only those whose names contain this")


def main(arguments: argparse.Namespace) -> int:
    """Measure, publish the table and return PASS or SLOWER."""
    names = [name for name in [*CASES, *PREDICTIONS] if arguments.k in name]
    with stranger() if arguments.stranger else contextlib.nullcontext():
        table, passed = judge(names, LIMIT_WITH_STRANGER if arguments.stranger else LIMIT, times)
    publish(f"## Threads, auto against one{' beside a stranger' if arguments.stranger else ''}: {table}")
    return PASS if passed else SLOWER
