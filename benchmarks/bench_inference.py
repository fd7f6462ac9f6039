"""Predictions per second: whole calls, a few rows or many."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.cases import PREDICTIONS
from benchmarks.conftest import prepare
from benchmarks.peers import PREDICTORS, predictor


@pytest.mark.parametrize("library", PREDICTORS)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_inference(name: str, library: str, rate: Callable[..., float | None], record: Callable[..., None]) -> None:
    calls_per_second = rate(prepare(predictor, PREDICTIONS[name], library))
    if calls_per_second:
        record(name, library, calls_per_second=calls_per_second)
