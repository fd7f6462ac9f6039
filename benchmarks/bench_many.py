"""Networks per second, many of them at once, and what it costs that they end at different times."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.many import LEAVERS, MANY, MANY_DEFAULT, MANY_LIBRARIES, ROUNDS, Run, many_in_turns
from benchmarks.peak import peak_gflops


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Hand the names of the cases to whoever asks for one."""
    if "many_case" in metafunc.fixturenames:
        metafunc.parametrize("many_case", list(MANY if metafunc.config.getoption("--full-grid") else MANY_DEFAULT))


def test_many(many_case: str, benchmark: Any, record: Callable[..., None]) -> None:
    many, runs = MANY[many_case], dict[str, Run]()
    for library, make in MANY_LIBRARIES.items():
        try:
            runs[library] = make(many)
        except (ModuleNotFoundError, NotImplementedError):
            assert not library.startswith("fastbp")
    measured = benchmark.pedantic(many_in_turns, args=(runs, many.epochs), rounds=1)
    one_thread = measured.ratios.pop("fastbp, 1 thread")
    record("many", many_case, measured.speeds, measured.ratios, threads=one_thread, peak=peak_gflops(many.case.dtype))


@pytest.mark.parametrize("leaver", LEAVERS)
def test_leaving(leaver: str, benchmark: Any, record: Callable[..., None]) -> None:
    once = LEAVERS[leaver]()
    times = benchmark.pedantic(lambda: [once() for _ in range(ROUNDS)], rounds=1)
    record("leaving", leaver, {"fastbp": statistics.median(times)}, least=min(times), most=max(times))
