"""Write the tables and the picture of runs whose JSON `pytest --benchmark-only --benchmark-json FILE` kept."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cases import CASES, DTYPES, FEW_ROWS, GRID, ODD_GRID, XOR, Case
from benchmarks.many import MANY_LIBRARIES
from benchmarks.peers import LIBRARIES

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmark table -->", "<!-- end of benchmark table -->"
COMPETITORS = {"numpy", "torch", "jax"}  # in every case that the headline counts
PERCENTAGES = "The percentages are the shares of one core's peak that fastbp reaches by its matrix products alone.\n"
COLOURS = {
    "fastbp": "#c1272d",
    "numpy": "#4d77cf",
    "scikit-learn": "#f7931e",
    "torch, 1 thread": "#b58ad1",
    "torch": "#6d3fa0",
    "torch compiled, 1 thread": "#7f7f7f",
    "torch compiled": "#2f1457",
    "jax": "#2a9d6f",
}


class Section(NamedTuple):
    """One kind of benchmark: a table of its own."""

    title: str
    unit: str


SECTIONS = {
    "training": Section("training", "epochs/s"),
    "estimators": Section("classifiers, `fit` on one thread", "epochs/s"),
    "predict": Section("predict", "calls/s"),
    "many": Section("many networks at once", "networks/s"),
    "leaving": Section("networks that end at different times", "times as long as together"),
    "start": Section("start", "seconds"),
}

# What `extra_info` has of a benchmark: `section`, a key of SECTIONS; `case`; `figures`, by library; `ratios`, of fastbp
# to each peer near the best, round by round; and of a training `peak_gflops`, the most that one core can do.
Entry = dict[str, Any]


# --- figures --------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """How many times as fast as its best peer fastbp is: the median over the rounds, and their least and most."""

    peer: str
    median: float
    least: float
    most: float

    @property
    def tie(self) -> bool:
        """Whether rounds disagree about who is faster."""
        return self.least <= 1 <= self.most

    def __str__(self) -> str:
        """Write it as a cell of a table."""
        times = f"{digits(self.median)} ({digits(self.least)}..{digits(self.most)}) {self.peer}"
        return f"tie, {times}" if self.tie else times


def comparison_of(entry: Entry) -> Comparison | None:
    """Compare fastbp with its best peer: of those measured in turns with it, the one it is least ahead of."""
    ratios = entry["ratios"]
    if not ratios:
        return None
    peer = min(ratios, key=lambda library: statistics.median(ratios[library]))
    return Comparison(peer, statistics.median(ratios[peer]), min(ratios[peer]), max(ratios[peer]))


def share_of_peak(entry: Entry) -> float | None:
    """Return what part of one core's peak fastbp's matrix products alone reach."""
    if "peak_gflops" not in entry:
        return None
    return entry["figures"]["fastbp"] * CASES[entry["case"]].flops_per_epoch / 1e9 / entry["peak_gflops"]


def percent(share: float | None) -> str:
    """Write a share."""
    return "" if share is None else f"{share:.0%}"


def cell(entry: Entry) -> str:
    """Write what was measured in one cell: the comparison, or the speed where there is no peer, and the share."""
    speed = f"{digits(entry['figures']['fastbp'])} {SECTIONS[entry['section']].unit}"
    return ", ".join(filter(None, [str(comparison_of(entry) or speed), percent(share_of_peak(entry))]))


def entries_of(run: dict[str, Any]) -> list[Entry]:
    """Return what the benchmarks of a JSON file measured."""
    return [benchmark["extra_info"] for benchmark in run["benchmarks"]]


def section_of(entries: Iterable[Entry], section: str) -> list[Entry]:
    """Return those of one section."""
    return [entry for entry in entries if entry.get("section") == section]


def digits(figure: float | None, enough: int = 3) -> str:
    """Write a number with at least so many digits, and all those before the point."""
    if figure is None:
        return ""
    return f"{figure:,.{max(0, enough - 1 - math.floor(math.log10(figure)))}f}"


def processor(run: dict[str, Any]) -> str:
    """Say on what a run was measured."""
    info, used = run["machine_info"], "" if has_all_cores(run) else f"{run['machine_info']['cores']} of "
    return f"{info['cpu'].get('brand_raw') or info['machine']}, {used}{info['cpu']['count']} cores"


def has_all_cores(run: dict[str, Any]) -> bool:
    """Whether a run was not bound to some of the cores."""
    return bool(run["machine_info"]["cores"] == run["machine_info"]["cpu"]["count"])


def machine(run: dict[str, Any]) -> str:
    """Say on what and when a run was measured, and with which versions."""
    info = run["machine_info"]
    peaks = {CASES[entry["case"]].dtype: entry["peak_gflops"] for entry in section_of(entries_of(run), "training")}
    return "; ".join([
        processor(run) + "".join(f", one core's peak {peak:.0f} GFLOP/s in {dtype}" for dtype, peak in peaks.items()),
        f"{info['system']}, Python {info['python_version']}",
        ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        run["datetime"][:10],
    ])  # fmt: skip


def headline(entries: list[Entry]) -> list[str]:
    """Say in sentences how the cases in which all competed ended, and apart from these what else was compared."""
    training = section_of(entries, "training")
    counted = [
        (comparison, entry)
        for entry in training
        if entry["figures"].keys() >= COMPETITORS and (comparison := comparison_of(entry))
    ]
    sentences = []
    if counted:
        won = sum(comparison.least > 1 for comparison, _ in counted)
        ties = sum(comparison.tie for comparison, _ in counted)
        counted.sort(key=lambda pair: pair[0].median)
        (least, worst), (most, best) = counted[0], counted[-1]
        sklearn = sum("scikit-learn" in entry["figures"] for _, entry in counted)
        sentences += [
            f"fastbp is faster than the best of the other libraries in {won} of {len(counted)} training cases, slower "
            f"in {len(counted) - won - ties} and tied in {ties}.",
            f"The median ratio of its epochs per second to theirs is {digits(least.median)} in the least favourable "
            f"case ({worst['case']}) and {digits(most.median)} in the most favourable ({best['case']}).",
            f"NumPy, PyTorch and JAX competed in all of these, scikit-learn in {sklearn}.",
        ]
        if compiled := [entry["case"] for entry in training if "torch compiled" in entry["figures"]]:
            sentences.append(f"PyTorch was also compiled for {', '.join(compiled)}.")
    elif training:
        sentences.append("No training case is counted: NumPy, PyTorch and JAX must all have competed in it.")
    for entry in training:
        if entry["case"] == XOR.name and "notebook" in entry["figures"]:
            times = entry["figures"]["fastbp"] / entry["figures"]["notebook"]
            sentences.append(f"XOR trains {digits(times)} times as fast as by the notebook's own loop in NumPy.")
    medians = [c.median for entry in section_of(entries, "estimators") if (c := comparison_of(entry))]
    if medians:
        sentences.append(
            f"Not counted, because scikit-learn alone competed, and on one thread: `fastbp.sklearn` fits classifiers "
            f"{digits(min(medians))} to {digits(max(medians))} times as fast as scikit-learn, in {len(medians)} cases."
        )
    return sentences


# --- tables ---------------------------------------------------------------------------------------------------------


def section_table(entries: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table: a row for each case of a section, a column for each library that was in it."""
    section = SECTIONS[entries[0]["section"]]
    present = {library for entry in entries for library in entry["figures"]}
    libraries = [library for library in LIBRARIES | MANY_LIBRARIES if library in present]
    head = [f"{section.title}, {section.unit}", *libraries]
    rows = [[entry["case"], *(digits(entry["figures"].get(library)) for library in libraries)] for entry in entries]
    for title, cells in (
        ("fastbp / best other", [str(comparison_of(entry) or "") for entry in entries]),
        ("of a core's peak", [percent(share_of_peak(entry)) for entry in entries]),
    ):
        if any(cells):
            head.append(title)
            for row, value in zip(rows, cells, strict=True):
                row.append(value)
    return head, rows


def text_tables(entries: list[Entry]) -> list[tuple[str, list[str]]]:
    """Return title and lines of a table for each section, training last, for the terminal."""
    result = []
    for name in reversed(SECTIONS):
        if section := section_of(entries, name):
            head, rows = section_table(section)
            titles = [textwrap.wrap(title, 10) for title in ["case", *head[1:]]]
            above = max(map(len, titles))
            cells = [*zip(*([""] * (above - len(title)) + title for title in titles), strict=True), *rows]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines = [
                "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells
            ]
            result.append((head[0], lines))
    return result


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, the first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def grid_entries(entries: list[Entry], dtype: str, grid: Iterable[Case] = GRID) -> dict[tuple[int, int], Entry]:
    """Return what of a grid was compared, by batch size and width."""
    compared = {entry["case"]: entry for entry in section_of(entries, "training") if entry["ratios"]}
    return {
        (case.batch_size, case.sizes[1]): compared[case.name]
        for case in grid
        if case.dtype == dtype and case.name in compared
    }


def measured_dtypes(entries: list[Entry]) -> list[str]:
    """Return the precisions in which the grid was measured."""
    return list(dict.fromkeys(case.dtype for case in GRID if grid_entries(entries, case.dtype)))


def axes_of(cells: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return the batch sizes and the widths that occur."""
    batch_sizes, widths = (sorted(set(values)) for values in zip(*cells, strict=True))
    return batch_sizes, widths


def short_table(run: dict[str, Any]) -> str:
    """Return the grids of a run as ratios, all its other cases as figures, and the machine."""
    entries = entries_of(run)
    parts = [" ".join(headline(entries)) + "\n", PERCENTAGES]
    for grid, dtype in itertools.product((GRID, ODD_GRID), DTYPES):
        compared = grid_entries(entries, dtype, grid)
        if not compared:
            continue
        batch_sizes, widths = axes_of(compared)
        rows = [
            [
                str(batch_size),
                *(cell(compared[at]) if (at := (batch_size, width)) in compared else "" for width in widths),
            ]
            for batch_size in batch_sizes
        ]
        parts.append(markdown([f"{dtype}: batch", *(f"width {width}" for width in widths)], rows))
    names = {case.name for case in [*GRID, *ODD_GRID]}
    elsewhere = ("many", "leaving")  # of `many_report.py`
    parts += all_tables([e for e in entries if e["case"] not in names and e["section"] not in elsewhere])
    return "\n".join([*parts, f"{machine(run)}."])


def all_tables(entries: list[Entry]) -> list[str]:
    """Return a table for each section with the figures of all libraries."""
    return [markdown(*section_table(section)) for name in SECTIONS if (section := section_of(entries, name))]


def summary(run: dict[str, Any]) -> str:
    """Return what the README shows of a run: its tables, or if it had some of the cores only what they amount to."""
    return short_table(run) if has_all_cores(run) else f"{' '.join(headline(entries_of(run)))}\n\n{machine(run)}."


def of_each_machine(texts: Sequence[str], runs: Sequence[dict[str, Any]]) -> str:
    """Join what is said of each run, under its machine if there are several."""
    if len(runs) > 1:
        texts = [f"### {processor(run)}\n\n{text}" for run, text in zip(runs, texts, strict=True)]
    return "\n\n".join(texts)


# --- picture --------------------------------------------------------------------------------------------------------


def picture(run: dict[str, Any]) -> Any:
    """Draw the ratio to the best peer over the grid, and below it epochs per second against width."""
    from matplotlib.figure import Figure

    entries = entries_of(run)
    dtypes = measured_dtypes(entries)
    batch_sizes, _ = axes_of(grid_entries(entries, dtypes[0]))
    batch_sizes = [batch_size for batch_size in batch_sizes if batch_size not in FEW_ROWS] or batch_sizes
    shown = [batch_sizes[0], batch_sizes[len(batch_sizes) // 2], batch_sizes[-1]]
    figure = Figure(figsize=(12, 10), layout="constrained")
    above, below, foot = figure.subfigures(3, 1, height_ratios=[5, 5, 0.6])
    above.suptitle(
        "Training speed of fastbp over that of the fastest other library (blue: faster), and share of a core's peak, "
        "16-width-width-1"
    )
    for axes, dtype in zip(above.subplots(1, len(dtypes), squeeze=False)[0], dtypes, strict=True):
        draw_ratios(axes, grid_entries(entries, dtype))
        axes.set_title(dtype)
    below.suptitle(f"Epochs of 1,024 rows per second, {dtypes[0]}")
    panels = below.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, batch_size in zip(panels, shown, strict=True):
        draw_speeds(axes, entries, dtypes[0], batch_size)
        axes.set_title(f"batches of {batch_size:,}")
    panels[0].set_ylabel("epochs per second")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    below.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False)
    foot.text(0.5, 0.5, machine(run).replace("; ", "\n", 1), ha="center", va="center", size=8, wrap=True)
    return figure


def draw_ratios(axes: Any, compared: dict[tuple[int, int], Entry]) -> None:
    """Draw a heat map whose colour is neutral where fastbp and its best peer are equal, on a logarithmic scale."""
    batch_sizes, widths = axes_of(compared)
    colours = [[math.nan] * len(widths) for _ in batch_sizes]
    end = math.log(10)  # the strongest colour
    for (batch_size, width), entry in compared.items():
        comparison = comparison_of(entry)
        assert comparison is not None
        across, down = widths.index(width), batch_sizes.index(batch_size)
        colours[down][across] = math.log(comparison.median)
        below = f"tie, {comparison.peer}" if comparison.tie else comparison.peer
        ink = "white" if abs(colours[down][across]) > 0.6 * end else "black"
        above = f"{digits(comparison.median)}, {percent(share_of_peak(entry))}"
        axes.text(across, down, f"{above}\n{below}", ha="center", va="center", size=8, color=ink)
    axes.set_facecolor("0.9")  # of cells that were not measured
    axes.imshow(colours, cmap="RdBu", vmin=-end, vmax=end, aspect="auto")
    axes.set_xticks(range(len(widths)), [f"{width}" for width in widths])
    axes.set_yticks(range(len(batch_sizes)), [f"{batch_size:,}" for batch_size in batch_sizes])
    axes.set_xlabel("width")
    axes.set_ylabel("batch size")


def draw_speeds(axes: Any, entries: list[Entry], dtype: str, batch_size: int) -> None:
    """Draw a line for each library."""
    figures = {entry["case"]: entry["figures"] for entry in entries}
    cases = [case for case in GRID if (case.dtype, case.batch_size) == (dtype, batch_size) and case.name in figures]
    for library, colour in COLOURS.items():
        points = [(case.sizes[1], figures[case.name][library]) for case in cases if library in figures[case.name]]
        if points:
            width = 2.5 if library == "fastbp" else 1.2
            axes.plot(*zip(*points, strict=True), "o-", ms=4, lw=width, color=colour, label=library)
    widths = [case.sizes[1] for case in cases]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks(widths, [f"{width}" for width in widths])
    axes.set_xlabel("width")
    axes.grid(alpha=0.3)


def save(figure: Any, path: Path) -> None:
    """Write a figure as a small SVG, its text as text: of the same figure the same bytes every time."""
    from matplotlib import rc_context

    # One font, because every piece of text names all of them.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastbp", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(path, metadata={"Date": None})


# --- the subcommand -------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `main`."""
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE.json", help="what --benchmark-json wrote, one a machine"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="directory of table.md and the first run's picture"
    )
    parser.add_argument("--readme", type=Path, help=f"file whose lines between {BEGIN} and {END} are replaced")


def insert(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """Return the text with the table between the two marks."""
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"a line {begin!r} and after it {end!r} must be there, once")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def main(arguments: argparse.Namespace) -> int:
    """Print the tables, and write them and the picture into the directory."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in arguments.files]
    short = [short_table(run) for run in runs]
    full = [
        "\n".join([table, "", "All figures:", "", *all_tables(entries_of(run))])
        for run, table in zip(runs, short, strict=True)
    ]
    text = of_each_machine(full, runs)
    sys.stdout.write(text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    if measured_dtypes(entries_of(runs[0])):
        save(picture(runs[0]), arguments.output / "picture.svg")
    if arguments.readme:
        table = of_each_machine([summary(run) for run in runs], runs)
        arguments.readme.write_text(insert(arguments.readme.read_text(encoding="utf-8"), table), encoding="utf-8")
    return 0
