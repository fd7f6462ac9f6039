"""Epochs per second of every case in every library."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.cases import CASES
from benchmarks.conftest import prepare
from benchmarks.peak import peak_gflops
from benchmarks.peers import LIBRARIES, trainer


@pytest.mark.parametrize("library", LIBRARIES)
def test_training(
    training_case: str, library: str, rate: Callable[..., float | None], record: Callable[..., None]
) -> None:
    case = CASES[training_case]
    epochs_per_second = rate(prepare(trainer, case, library))
    if epochs_per_second:
        gflops = epochs_per_second * case.flops_per_epoch / 1e9
        share = gflops / peak_gflops(case.dtype)  # of one core, also for libraries that use more
        record(case.name, library, epochs_per_second=epochs_per_second, gflops=gflops, share_of_peak=share)
