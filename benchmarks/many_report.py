"""Write the tables of many networks at once from the JSON of `pytest --benchmark-only --benchmark-json FILE`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.many import MANY
from benchmarks.report import (
    Entry,
    comparison_of,
    digits,
    entries_of,
    insert,
    machine,
    markdown,
    section_of,
    section_table,
)

BEGIN, END = "<!-- table of many networks -->", "<!-- end of table of many networks -->"
POOL, JAX = "thread pool over train", "jax vmap"

# Cases whose derived figures the README shows; the file beside the results has all.
SHOWN = ("1,000 x XOR float64", "1,000 x XOR float32", "64 x 16-8-8-1 float32", "64 x 16-32-1 float32")


def nanoseconds(entry: Entry) -> float:
    """Return those of a network and epoch on one thread."""
    return 1e9 / (entry["figures"]["fastbp, 1 thread"] * MANY[entry["case"]].epochs)


def share(entry: Entry) -> float:
    """Return what part of one core's peak the matrix products alone reach on one thread."""
    many = MANY[entry["case"]]
    return entry["figures"]["fastbp, 1 thread"] * many.epochs * many.case.flops_per_epoch / 1e9 / entry["peak"]


def spread(ratios: list[float]) -> str:
    """Write a median and its range."""
    return f"{digits(statistics.median(ratios))} ({digits(min(ratios))}..{digits(max(ratios))})"


def derived(entries: list[Entry]) -> list[list[str]]:
    """Return rows: a case, what of it, how much."""
    rows = []
    for entry in section_of(entries, "many"):
        name, ratios = entry["case"], entry["ratios"]
        if "XOR" in name and MANY[name].networks >= 1_000:
            rows.append([name, "ns for a network and epoch, 1 thread", digits(nanoseconds(entry))])
        if "XOR" not in name:
            rows.append([name, "of a core's peak by matrix products alone, 1 thread", f"{share(entry):.0%}"])
        if MANY[name].networks > 1:
            rows.append([name, "all cores / 1 thread", spread(entry["threads"])])
        rows += [
            [name, f"fastbp / {peer}", spread(ratios[peer])]
            for peer in (POOL, JAX)
            if peer in ratios and MANY[name].networks > 1
        ]
    rows += [
        [entry["case"], "time / that of as many epochs in full lanes",
         f"{digits(entry['figures']['fastbp'])} ({digits(entry['least'])}..{digits(entry['most'])})"]
        for entry in section_of(entries, "leaving")
    ]  # fmt: skip
    return rows


def sentence(entries: list[Entry]) -> str:
    """Say how many XOR networks are trained in a second, and how many by the best peer."""
    xors = [entry for entry in section_of(entries, "many") if "XOR" in entry["case"]]
    if not xors:
        return ""
    best = max(xors, key=lambda entry: entry["figures"]["fastbp"])
    many, comparison = MANY[best["case"]], comparison_of(best)
    text = (
        f"fastbp trains {digits(best['figures']['fastbp'])} networks per second: XOR, {many.epochs:,} epochs each, "
        f"{many.networks:,} at once in {many.case.dtype}"
    )
    if comparison:
        times = spread(best["ratios"][comparison.peer])
        return f"{text}, {times} times as many as {comparison.peer}.\n"
    return f"{text}.\n"


def table(run: dict[str, Any], whole: bool = True) -> str:
    """Return the sentence, the figures of all libraries, what is derived from them, all or some, and the machine."""
    entries = entries_of(run)
    rows = [row for row in derived(entries) if whole or row[0] in SHOWN or row[1].startswith("time / ")]
    return "\n".join([
        sentence(entries), markdown(*section_table(section_of(entries, "many"))),
        markdown(["networks", "what", "measured"], rows), f"{machine(run)}.",
    ])  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `main`."""
    parser.add_argument("file", type=Path, metavar="FILE.json", help="what --benchmark-json wrote")
    parser.add_argument("--readme", type=Path, help=f"file whose lines between {BEGIN} and {END} are replaced")


def main(arguments: argparse.Namespace) -> int:
    """Print the tables, and write the short one into the README, and all of them to the file beside the results."""
    run = json.loads(arguments.file.read_text(encoding="utf-8"))
    text = table(run)
    sys.stdout.write(text + "\n")
    if arguments.readme:
        readme = arguments.readme.read_text(encoding="utf-8")
        short = table(run, whole=False) + "\nMore: [benchmarks/results/many.md](benchmarks/results/many.md).\n"
        arguments.readme.write_text(insert(readme, short, BEGIN, END), encoding="utf-8")
        results = arguments.readme.parent / "benchmarks" / "results"
        results.mkdir(parents=True, exist_ok=True)
        (results / "many.md").write_text(f"# Many networks at once\n\n{text}\n", encoding="utf-8")
    return 0
