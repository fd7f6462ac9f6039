"""What `pytest --benchmark-only` collects and shows, and the fixtures with which all benchmarks measure."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import fastbp
from benchmarks.cases import CASES, DEFAULT
from benchmarks.report import cell, headline, text_tables
from benchmarks.turns import in_turns
from fastbp.threads import cores

HERE = Path(__file__).resolve().parent
ENTRIES = pytest.StashKey[list[dict[str, Any]]]()
PACKAGES = ("numba", "numpy", "scikit-learn", "torch", "jax")


# --- collection -----------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole grid be asked for."""
    parser.addoption("--full-grid", action="store_true", help="train every batch size x width x precision")


class NothingElse:
    """Leaves files outside benchmarks/ uncollected; no conftest, for those are not asked about other directories."""

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        return True if collection_path.is_file() and HERE not in collection_path.parents else None


def pytest_configure(config: pytest.Config) -> None:
    """With --benchmark-only, collect nothing else and show a line for each case."""
    if config.getoption("benchmark_only", default=False):
        config.pluginmanager.register(NothingElse())
        config.option.verbose = config.option.verbose or 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --benchmark-only, drop tests that were named on the command line and are no benchmarks."""
    if config.getoption("benchmark_only", default=False):
        kept = [item for item in items if "benchmark" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Hand the names of the training cases to whoever asks for one."""
    if "training_case" in metafunc.fixturenames:
        names = CASES if metafunc.config.getoption("--full-grid") else DEFAULT
        metafunc.parametrize("training_case", list(names))


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(
    benchmark: Any, request: pytest.FixtureRequest, record_property: Callable[[str, str], None]
) -> Callable[..., None]:
    """`record(section, case, figures, ratios, ...)`: keep them for the JSON and the tables; see `report.SECTIONS`."""

    def keep(
        section: str, case: str, figures: dict[str, float], ratios: dict[str, list[float]] | None = None, **more: float
    ) -> None:
        entry = {"section": section, "case": case, "figures": figures, "ratios": ratios or {}, **more}
        benchmark.extra_info.update(entry)
        request.config.stash.setdefault(ENTRIES, []).append(entry)
        record_property("measured", cell(entry))

    return keep


@pytest.fixture
def measure(benchmark: Any, record: Callable[..., None]) -> Callable[..., None]:
    """`measure(section, case, makers, ...)`: measure what the maker of each library makes, and record it.

    A library that is not installed, or cannot do the same arithmetic, is left out. What pytest-benchmark times is the
    whole measurement.
    """

    def keep(section: str, case: str, makers: Mapping[str, Callable[[], Callable[[int], Any]]], **more: float) -> None:
        runs = {}
        for library, make in makers.items():
            try:
                runs[library] = make()
            except (ModuleNotFoundError, NotImplementedError) as reason:
                if library == "fastbp":
                    pytest.skip(str(reason))
        measured = benchmark.pedantic(in_turns, args=(runs,), rounds=1)
        record(section, case, measured.speeds, measured.ratios, **more)

    return keep


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add the cores that may be used and the versions of what is compared; leave out the name of the machine."""
    machine_info["node"], machine_info["cores"] = "", cores()
    machine_info["versions"] = {"fastbp": fastbp.__version__} | {
        name: importlib.metadata.version(name) for name in PACKAGES if any(importlib.metadata.distributions(name=name))
    }


# --- what is shown --------------------------------------------------------------------------------------------------


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Show what was measured in place of "PASSED"."""
    measured = dict(getattr(report, "user_properties", ())).get("measured")
    return ("passed", ".", measured) if measured and report.when == "call" and report.passed else None


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """End with what was measured: the tables, training last, and what they say in short."""
    entries = config.stash.get(ENTRIES, [])
    for title, lines in text_tables(entries):
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
    for sentence in headline(entries):
        terminalreporter.write_line(sentence)
