"""Judge whether one tree of fastbp is slower than another: `python -m benchmarks compare --base TREE --head TREE`."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks import gate_cases
from benchmarks.report import markdown

PASS, SLOWER, NO_VERDICT = range(3)  # the exit codes

PAIRS = 7
CONTROL_LIMIT = 1.10  # a control that moves more, either way: no verdict
MEAN_LIMIT = 1.05  # of head / base over all cases of the steady state
MEAN = "geometric mean of the steady state"

COLD = "first call, nothing compiled"
WARM = "first call, compiled before"
IMPORT = "import fastbp"


class Section(NamedTuple):
    """Cases that are one kind of time: a part of the table, measured together in one process."""

    title: str
    limit: float  # of head / base
    names: list[str]


STEADY = Section("Steady state", 1.15, list(gate_cases.CASES))
THREADS = Section("Threads", 1.5, list(gate_cases.THREADED))
CONTROLS = Section("Controls", math.inf, list(gate_cases.CONTROLS))
SECTIONS = [
    STEADY,
    THREADS,
    Section("First call", 1.5, [COLD, WARM]),
    Section("Import", 1.5, [IMPORT]),
    CONTROLS,
]
NAMES = [name for section in SECTIONS for name in section.names]

# Names that one process measures together; controls beside the cases for which they vouch.
PROCESSES = [STEADY.names + THREADS.names + CONTROLS.names, [COLD], [WARM], [IMPORT]]

IMPORT_PROCESSES = 5  # the best of them counts, as it does of rounds
IMPORT_CODE = "import time; began = time.perf_counter(); import fastbp; print(time.perf_counter() - began)"

Seconds = dict[str, "float | str"]  # or why there are none
Pair = dict[str, Seconds]  # "base" and "head"
Measure = Callable[[str, list[str]], Seconds]  # of a side, "base" or "head"


# --- measuring ------------------------------------------------------------------------------------------------------


class MeasurementError(Exception):
    """A process that should have measured failed."""


class Tree(NamedTuple):
    """A directory that contains fastbp/, and where its compiled code is kept."""

    path: Path
    cache: str


def python(tree: Tree, arguments: Sequence[str]) -> str:
    """Run Python with a tree of fastbp on its path and one thread, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "FASTBP_"))}
    threads = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    kept |= dict.fromkeys(threads, "1")
    kept |= {"PYTHONPATH": str(tree.path), "PYTHONHASHSEED": "0", "NUMBA_CACHE_DIR": tree.cache}
    # -P: the directory of the script is not searched for modules.
    done = subprocess.run([sys.executable, "-P", *arguments], env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeasurementError(f"measuring {tree.path} failed:\n{done.stderr}")
    return done.stdout


def measure(tree: Tree, names: list[str]) -> Seconds:
    """Measure cases that belong together in a fresh process."""
    script = [gate_cases.__file__, str(tree.path)]
    if names == [IMPORT]:
        return {IMPORT: min(float(python(tree, ["-c", IMPORT_CODE])) for _ in range(IMPORT_PROCESSES))}
    if names in ([COLD], [WARM]):
        with tempfile.TemporaryDirectory() as empty:
            cache = empty if names == [COLD] else tree.cache
            printed = python(tree._replace(cache=cache), [*script, gate_cases.FIRST_CALL])
        return {names[0]: json.loads(printed)[gate_cases.FIRST_CALL]}
    seconds: Seconds = json.loads(python(tree, [*script, *names]))
    return seconds


def together(names: Iterable[str]) -> list[list[str]]:
    """Split names into those of each process."""
    chosen = set(names)
    groups = [[name for name in group if name in chosen] for group in PROCESSES]
    return [group for group in groups if group]


def orders(pairs: int) -> list[tuple[str, str]]:
    """Return which side of each pair goes first, ABBA: what drifts favours neither."""
    return [("base", "head") if pair % 2 == 0 else ("head", "base") for pair in range(pairs)]


def measure_pairs(measure: Measure, names: Iterable[str], pairs: int) -> list[Pair]:
    """Measure both sides in turn, as many times."""
    measured: list[Pair] = [{"base": {}, "head": {}} for _ in range(pairs)]
    for group in together(names):
        for pair, order in zip(measured, orders(pairs), strict=True):
            for side in order:
                pair[side] |= measure(side, group)
    return measured


# --- judging --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A case: the median seconds of both sides, and the logarithm of head / base of each pair, sorted."""

    base: float
    head: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """Median of head / base."""
        return math.exp(statistics.median(self.ratios))

    @property
    def slower_pairs(self) -> int:
        """Pairs in which head took longer."""
        return sum(ratio > 0 for ratio in self.ratios)

    def is_slower(self, limit: float) -> bool:
        """Whether head is slower: by more than the limit, and in all pairs but one at most, lest it be luck."""
        return self.ratio > limit and self.slower_pairs >= len(self.ratios) - 1


class Verdict(NamedTuple):
    """What the pairs say."""

    rows: dict[str, Row]
    missing: dict[str, str]  # case: on which side, and why
    mean: float  # geometric, of head / base over the steady state
    slower: list[str]  # cases, or MEAN
    doubts: list[str]  # why there is no verdict

    @property
    def status(self) -> int:
        """PASS, SLOWER or NO_VERDICT."""
        return NO_VERDICT if self.doubts else SLOWER if self.slower else PASS


def judge(pairs: list[Pair], names: Iterable[str]) -> Verdict:
    """Judge the pairs, in which these cases should be."""
    rows, missing, doubts = {}, {}, []
    for name in names:
        sides = {side: [pair[side].get(name, "not measured") for pair in pairs] for side in ("base", "head")}
        reasons = {side: reason for side, values in sides.items() for reason in values if isinstance(reason, str)}
        if reasons:
            missing[name] = "; ".join(f"not on {side}: {reason}" for side, reason in reasons.items())
            if "head" in reasons and "base" not in reasons:
                doubts.append(f"head cannot run {name}")
            continue
        base, head = ([float(value) for value in values] for values in sides.values())
        ratios = sorted(math.log(h / b) for b, h in zip(base, head, strict=True))
        rows[name] = Row(statistics.median(base), statistics.median(head), ratios)

    slower = [
        name for section in SECTIONS for name in section.names if name in rows and rows[name].is_slower(section.limit)
    ]
    steady = [statistics.median(rows[name].ratios) for name in STEADY.names if name in rows]
    mean = math.exp(statistics.fmean(steady)) if steady else math.nan
    if mean > MEAN_LIMIT:
        slower.append(MEAN)

    controls = [name for name in CONTROLS.names if name in rows]
    doubts += [
        f"{name} moved by {rows[name].ratio - 1:+.1%}: the machine changed meanwhile"
        for name in controls
        if abs(math.log(rows[name].ratio)) > math.log(CONTROL_LIMIT)
    ]
    if not controls:
        doubts.append("no control was measured")
    if len(rows) == len(controls):
        doubts.append("no case was measured on both sides")
    return Verdict(rows, missing, mean, slower, doubts)


def compare(measure: Measure, names: Sequence[str], pairs: int) -> tuple[list[Pair], Verdict]:
    """Measure and judge, and measure what is slower afresh: only what is slower both times is."""
    measured = measure_pairs(measure, names, pairs)
    first = judge(measured, names)
    if first.status != SLOWER:
        return measured, first
    suspects = {*first.slower, *(STEADY.names if MEAN in first.slower else []), *CONTROLS.names} & set(names)
    afresh = measure_pairs(measure, suspects, pairs)
    measured = [{side: pair[side] | again[side] for side in pair} for pair, again in zip(measured, afresh, strict=True)]
    second = judge(measured, names)
    return measured, second._replace(slower=[name for name in second.slower if name in first.slower])


def fill_caches(trees: Iterable[Tree], names: Iterable[str]) -> None:
    """Compile beforehand what is not to be compiled while it is measured; two trees at once, for nothing is timed."""

    def fill(tree: Tree) -> None:
        for group in together(names):
            if group != [COLD]:
                measure(tree, group)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, trees))


def compare_trees(base: Tree, head: Tree, names: Sequence[str], pairs: int) -> tuple[list[Pair], Verdict]:
    """Compare two trees, whose caches are filled."""
    return compare(lambda side, group: measure(base if side == "base" else head, group), names, pairs)


# --- the report -----------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    """Write a time."""
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def report(verdict: Verdict, pairs: int) -> str:
    """Write the verdict in Markdown: what is wrong, then a table for each section."""
    word = {PASS: "pass", SLOWER: "slower", NO_VERDICT: "no verdict"}[verdict.status]
    text = f"## Performance, head against base: {word}\n\n"
    text += "".join(f"* No verdict: {doubt}.\n" for doubt in verdict.doubts)
    text += "".join(f"* Slower: {name}.\n" for name in verdict.slower)
    text += "".join(f"* Not compared: {name}, {reason}.\n" for name, reason in verdict.missing.items())
    text += f"* {MEAN[0].upper()}{MEAN[1:]}: head / base = {verdict.mean:.3f}, limit {MEAN_LIMIT}. {pairs} pairs.\n"
    for section in SECTIONS:
        rows = {name: verdict.rows[name] for name in section.names if name in verdict.rows}
        if rows:
            limit = f"limit {section.limit}" if math.isfinite(section.limit) else f"no verdict beyond {CONTROL_LIMIT}"
            text += f"\n### {section.title}, {limit}\n\n" + markdown(
                ["case", "base, ms", "head, ms", "head / base", "least", "most", "slower pairs", ""],
                [
                    [
                        name, milliseconds(row.base), milliseconds(row.head), f"{row.ratio:.3f}",
                        f"{math.exp(row.ratios[0]):.3f}", f"{math.exp(row.ratios[-1]):.3f}",
                        f"{row.slower_pairs} of {len(row.ratios)}", "SLOWER" if name in verdict.slower else "",
                    ]
                    for name, row in rows.items()
                ],
            )  # fmt: skip
    return text


def spread(pairs: list[Pair], verdict: Verdict) -> str:
    """Write how far head / base strays, which for a tree against itself is the noise of the machine."""

    def farthest(name: str) -> float:
        ratios = [math.log(float(pair["head"][name]) / float(pair["base"][name])) for pair in pairs]
        windows = [ratios[first : first + PAIRS] for first in range(max(1, len(ratios) - PAIRS + 1))]
        return max((statistics.median(window) for window in windows), key=abs)

    return f"\n### Spread of {len(pairs)} pairs\n\n" + markdown(
        ["case", "standard deviation", "least", "most", f"farthest median of {PAIRS} pairs in a row"],
        [
            [
                name, f"{statistics.pstdev(row.ratios):.1%}", f"{math.expm1(row.ratios[0]):+.1%}",
                f"{math.expm1(row.ratios[-1]):+.1%}", f"{math.expm1(farthest(name)):+.1%}",
            ]
            for name, row in verdict.rows.items()
        ],
    )  # fmt: skip


def publish(text: str) -> None:
    """Print Markdown, and add it to the summary of the job where there is one."""
    sys.stdout.write(text)
    sys.stdout.flush()
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def tree(path: str) -> Path:
    """Check a directory given on the command line."""
    if not Path(path, "fastbp", "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{path} must be a directory that contains fastbp/")
    return Path(path).resolve()


def number_of_pairs(text: str) -> int:
    """Check a number of pairs given on the command line."""
    if not text.isdecimal() or int(text) < 3:
        raise argparse.ArgumentTypeError(f"must be 3 or more, so that one may be off; got {text}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks compare`."""
    parser.add_argument("--base", type=tree, required=True, metavar="TREE", help="directory with the fastbp/ of before")
    parser.add_argument("--head", type=tree, required=True, metavar="TREE", help="directory with the fastbp/ to judge")
    parser.add_argument("--pairs", type=number_of_pairs, default=PAIRS, help="measurements of each side (default: 7)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the seconds of all pairs there")
    parser.add_argument("--spread", action="store_true", help="show how far the pairs of each case are apart")


def main(arguments: argparse.Namespace) -> int:
    """Compare two trees, publish the tables and return PASS, SLOWER or NO_VERDICT."""
    with tempfile.TemporaryDirectory() as base_cache, tempfile.TemporaryDirectory() as head_cache:
        base, head = Tree(arguments.base, base_cache), Tree(arguments.head, head_cache)
        try:
            fill_caches((base, head), NAMES)
            pairs, verdict = compare_trees(base, head, NAMES, arguments.pairs)
        except MeasurementError as error:
            publish(f"## Performance, head against base: no verdict\n\n{error}\n")
            return NO_VERDICT
    publish(report(verdict, len(pairs)))
    if arguments.spread:
        publish(spread(pairs, verdict))
    if arguments.json:
        arguments.json.write_text(json.dumps({"pairs": pairs, "slower": verdict.slower, "doubts": verdict.doubts}))
    return verdict.status
