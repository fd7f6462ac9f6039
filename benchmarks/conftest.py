"""The fixture of all benchmarks, what it adds to the JSON, and the tables that end the report."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest

import fastbp
from benchmarks.cases import CASES, DEFAULT, Case, calibrate
from benchmarks.report import text_tables

ROUNDS = 5  # the best of them counts: interruptions only add time
MEASURED = pytest.StashKey[list[dict[str, Any]]]()
PACKAGES = ("numba", "numpy", "scikit-learn", "torch", "jax")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole grid be asked for."""
    parser.addoption("--full-grid", action="store_true", help="train every batch size x width x precision")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Hand the names of the training cases to whoever asks for one."""
    if "training_case" in metafunc.fixturenames:
        names = CASES if metafunc.config.getoption("--full-grid") else DEFAULT
        metafunc.parametrize("training_case", list(names))


def prepare(maker: Callable[[Case, str], Callable[[int], Any]], case: Case, library: str) -> Callable[[int], Any]:
    """Make what is to be timed, or skip what is not installed or not the same arithmetic."""
    try:
        return maker(case, library)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    except NotImplementedError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def record(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(case, library, ...)`: keep figures for the JSON and for the tables, by the names in `report.UNITS`."""

    def keep(case: str, library: str, **figures: float) -> None:
        benchmark.extra_info.update(case=case, library=library, **figures)
        request.config.stash.setdefault(MEASURED, []).append(dict(benchmark.extra_info))

    return keep


@pytest.fixture
def rate(benchmark: Any) -> Callable[[Callable[[int], Any]], float | None]:
    """`rate(repeat)`: time calls of some 40 ms; how many times a second, or None if nothing is timed."""

    def measure(repeat: Callable[[int], Any]) -> float | None:
        times = calibrate(repeat) if benchmark.enabled else 1  # and with that it is compiled and warm
        benchmark.extra_info["times"] = times
        benchmark.pedantic(repeat, args=(times,), rounds=ROUNDS, iterations=1)
        return times / benchmark.stats.stats.min if benchmark.enabled else None

    return measure


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add the versions of what is compared to the JSON, and leave out the name of the machine."""
    machine_info["node"] = ""
    machine_info["versions"] = {"fastbp": fastbp.__version__} | {
        name: importlib.metadata.version(name) for name in PACKAGES if any(importlib.metadata.distributions(name=name))
    }


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """End with what was measured, a table for each unit."""
    for title, lines in text_tables(config.stash.get(MEASURED, [])):
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
