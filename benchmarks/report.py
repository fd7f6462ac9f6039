"""Write the tables and the picture of a run whose JSON `pytest --benchmark-only --benchmark-json FILE` kept."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, GRID

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmark table -->", "<!-- end of benchmark table -->"
# What a benchmark measures, by the name under which `extra_info` has it, and its unit.
UNITS = {"epochs_per_second": "epochs/s", "calls_per_second": "calls/s", "seconds": "seconds"}
TRAINING = "epochs_per_second"
COLOURS = {
    "fastbp": "#c1272d",
    "numpy": "#4d77cf",
    "scikit-learn": "#f7931e",
    "torch, 1 thread": "#b58ad1",
    "torch": "#6d3fa0",
    "jax": "#2a9d6f",
}

Measured = list[dict[str, Any]]
Table = dict[str, dict[str, float]]  # of one thing measured: case, library, figure


# --- figures --------------------------------------------------------------------------------------------------------


def tables(measured: Measured) -> dict[str, Table]:
    """Sort figures by what they measure, case and library."""
    result: dict[str, Table] = {}
    for entry in measured:
        for name in entry.keys() & UNITS:
            result.setdefault(name, {}).setdefault(entry["case"], {})[entry["library"]] = entry[name]
    return {name: result[name] for name in UNITS if name in result}


def tables_of(run: dict[str, Any]) -> dict[str, Table]:
    """Return the tables of a JSON file."""
    return tables([entry["extra_info"] for entry in run["benchmarks"]])


def best_peer(figures: dict[str, float]) -> str | None:
    """Return the fastest library beside fastbp."""
    peers = {library: figure for library, figure in figures.items() if library != "fastbp"}
    return max(peers, key=lambda library: peers[library]) if peers else None


def ratio(figures: dict[str, float], library: str, to: str | None) -> float | None:
    """Return how many times as fast a library is, if both were measured."""
    return figures[library] / figures[to] if library in figures and to in figures else None


def digits(figure: float | None, enough: int = 3) -> str:
    """Write a number with at least so many digits, and all those before the point."""
    if figure is None:
        return ""
    return f"{figure:,.{max(0, enough - 1 - math.floor(math.log10(figure)))}f}"


def machine(run: dict[str, Any]) -> str:
    """Say on what and when a run was measured, and with which versions."""
    info = run["machine_info"]
    peaks = {
        CASES[entry["case"]].dtype: entry["gflops"] / entry["share_of_peak"]
        for entry in (entry["extra_info"] for entry in run["benchmarks"])
        if "gflops" in entry and entry["case"] in CASES
    }
    return "; ".join([
        f"{info['cpu'].get('brand_raw') or info['machine']}, {info['cpu']['count']} cores"
        + "".join(f", one core's peak {peak:.0f} GFLOP/s in {dtype}" for dtype, peak in peaks.items()),
        f"{info['system']}, Python {info['python_version']}",
        ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        run["datetime"][:10],
    ])  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------------


def text_tables(measured: Measured) -> list[tuple[str, list[str]]]:
    """Return title and lines of a table for each unit, training last, for the terminal."""
    result = []
    for name, table in reversed(tables(measured).items()):
        unit = UNITS[name]
        lines = [f"{'case':<26}{'library':<18}{unit:>14}{'x numpy':>10}{'x best peer':>13}"]
        for case, figures in table.items():
            for library, figure in figures.items():
                to_numpy, to_best = (digits(ratio(figures, library, to)) for to in ("numpy", best_peer(figures)))
                lines.append(f"{case:<26}{library:<18}{digits(figure):>14}{to_numpy:>10}{to_best:>13}".rstrip())
        result.append((unit, lines))
    return result


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def grid_ratios(table: Table, dtype: str) -> dict[tuple[int, int], tuple[float, str]]:
    """Return, by batch size and width, how many times as fast as the best peer fastbp is, and which that is."""
    result = {}
    for case in GRID:
        figures = table.get(case.name, {})
        peer = best_peer(figures)
        times = ratio(figures, "fastbp", peer)
        if case.dtype == dtype and peer and times:
            result[case.batch_size, case.sizes[1]] = times, peer
    return result


def measured_dtypes(table: Table) -> list[str]:
    """Return the precisions in which the grid was measured."""
    return list(dict.fromkeys(case.dtype for case in GRID if grid_ratios(table, case.dtype)))


def axes_of(ratios: dict[tuple[int, int], Any]) -> tuple[list[int], list[int]]:
    """Return the batch sizes and the widths that occur."""
    return sorted({batch_size for batch_size, _ in ratios}), sorted({width for _, width in ratios})


def summary(table: Table) -> str:
    """Say in how many training cases fastbp is the fastest, and the smallest and the largest ratio."""
    ratios = {case: times for case, f in table.items() if (times := ratio(f, "fastbp", best_peer(f)))}
    if not ratios:
        return ""
    won = sum(times > 1 for times in ratios.values())
    least, most = min(ratios, key=lambda case: ratios[case]), max(ratios, key=lambda case: ratios[case])
    return (
        f"fastbp is the fastest in {won} of {len(ratios)} training cases. Against the best of the other libraries, its "
        f"epochs per second are {digits(ratios[least])} times as many in the least favourable case ({least}) and "
        f"{digits(ratios[most])} times in the most favourable ({most})."
    )


def short_table(run: dict[str, Any]) -> str:
    """Return what the README shows: the grid as ratios, all other cases as figures, and the machine."""
    units = tables_of(run)
    training = units.get(TRAINING, {})
    lines = [summary(training), ""]
    for dtype in measured_dtypes(training):
        ratios = grid_ratios(training, dtype)
        batch_sizes, widths = axes_of(ratios)
        rows = []
        for batch_size in batch_sizes:
            cells = [ratios.get((batch_size, width)) for width in widths]
            rows.append([str(batch_size), *(f"{digits(cell[0])} ({cell[1]})" if cell else "" for cell in cells)])
        head = [f"{dtype}: batch", *(f"width {width}" for width in widths)]
        lines += [*markdown(head, rows), ""]
    names = {case.name for case in GRID}
    others = {unit: {case: f for case, f in table.items() if case not in names} for unit, table in units.items()}
    return "\n".join([*lines, *figures_table(others), "", machine(run) + "."])


def figures_table(units: dict[str, Table]) -> list[str]:
    """Return the lines of a table with all figures of all libraries."""
    present = {library for table in units.values() for figures in table.values() for library in figures}
    libraries = [library for library in COLOURS if library in present]
    rows = []
    for name, table in units.items():
        for case, figures in table.items():
            peer = best_peer(figures)
            values = [digits(figures.get(library)) for library in libraries]
            rows.append([case, UNITS[name], *values, digits(ratio(figures, "fastbp", peer))])
    return markdown(["case", "unit", *libraries, "fastbp / best other"], rows) if rows else []


# --- picture --------------------------------------------------------------------------------------------------------


def picture(run: dict[str, Any]) -> Any:
    """Draw the ratio to the best peer over the grid, and below it epochs per second against width."""
    from matplotlib.figure import Figure

    table = tables_of(run)[TRAINING]
    dtypes = measured_dtypes(table)
    batch_sizes, _ = axes_of(grid_ratios(table, dtypes[0]))
    shown = [batch_sizes[0], batch_sizes[len(batch_sizes) // 2], batch_sizes[-1]]
    figure = Figure(figsize=(12, 10), layout="constrained")
    above, below, foot = figure.subfigures(3, 1, height_ratios=[5, 5, 0.6])
    above.suptitle("Training speed of fastbp over that of the fastest other library (blue: faster), 16-width-width-1")
    for axes, dtype in zip(above.subplots(1, len(dtypes), squeeze=False)[0], dtypes, strict=True):
        draw_ratios(axes, grid_ratios(table, dtype))
        axes.set_title(dtype)
    below.suptitle(f"Epochs of 1,024 rows per second, {dtypes[0]}")
    panels = below.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, batch_size in zip(panels, shown, strict=True):
        draw_speeds(axes, table, dtypes[0], batch_size)
        axes.set_title(f"batches of {batch_size:,}")
    panels[0].set_ylabel("epochs per second")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    below.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False)
    foot.text(0.5, 0.5, machine(run).replace("; ", "\n", 1), ha="center", va="center", size=8, wrap=True)
    return figure


def draw_ratios(axes: Any, ratios: dict[tuple[int, int], tuple[float, str]]) -> None:
    """Draw a heat map whose colour is neutral where fastbp and its best peer are equal, on a logarithmic scale."""
    batch_sizes, widths = axes_of(ratios)
    times = [[ratios.get((batch_size, width), (math.nan, ""))[0] for width in widths] for batch_size in batch_sizes]
    end = math.log(10)  # the strongest colour
    axes.imshow([[math.log(t) for t in row] for row in times], cmap="RdBu", vmin=-end, vmax=end, aspect="auto")
    for (batch_size, width), (value, peer) in ratios.items():
        place = widths.index(width), batch_sizes.index(batch_size)
        colour = "white" if abs(math.log(value)) > 0.6 * end else "black"
        axes.text(*place, f"{digits(value)}\n{peer}", ha="center", va="center", size=8, color=colour)
    axes.set_xticks(range(len(widths)), [f"{width}" for width in widths])
    axes.set_yticks(range(len(batch_sizes)), [f"{batch_size:,}" for batch_size in batch_sizes])
    axes.set_xlabel("width")
    axes.set_ylabel("batch size")


def draw_speeds(axes: Any, table: Table, dtype: str, batch_size: int) -> None:
    """Draw a line for each library."""
    cases = [case for case in GRID if (case.dtype, case.batch_size) == (dtype, batch_size) and case.name in table]
    for library, colour in COLOURS.items():
        points = [(case.sizes[1], table[case.name][library]) for case in cases if library in table[case.name]]
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
    parser.add_argument("file", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of table.md and the picture")
    parser.add_argument("--readme", type=Path, help=f"file whose lines between {BEGIN} and {END} are replaced")


def insert(text: str, table: str) -> str:
    """Return the text with the table between the two marks."""
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"a line {BEGIN!r} and after it {END!r} must be there, once")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def main(arguments: argparse.Namespace) -> int:
    """Print the tables, and write them and the picture into the directory."""
    run = json.loads(arguments.file.read_text(encoding="utf-8"))
    table = short_table(run)
    everything = tables_of(run)
    text = "\n".join([table, "", "All figures:", "", *figures_table(everything), ""])
    sys.stdout.write(text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    if measured_dtypes(everything.get(TRAINING, {})):
        save(picture(run), arguments.output / "picture.svg")
    if arguments.readme:
        arguments.readme.write_text(insert(arguments.readme.read_text(encoding="utf-8"), table), encoding="utf-8")
    return 0
