"""Epochs per second of every case in every library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.cases import CASES
from benchmarks.peak import peak_gflops
from benchmarks.peers import LIBRARIES, trainer


def test_training(training_case: str, measure: Callable[..., None]) -> None:
    case = CASES[training_case]
    makers = {library: partial(trainer, case, library) for library in LIBRARIES}
    measure("training", case.name, makers, peak_gflops=peak_gflops(case.dtype))
